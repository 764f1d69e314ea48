"""Pictures by address, for operators who switch it on: allowed hosts only, never this network.

The address is resolved once, checked, and connected to by number, so a name that changes its
answer between check and use (DNS rebinding) gains nothing.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from amlr.errors import InputError
from amlr.serving.settings import UrlSettings

_PORTS = {"http": 80, "https": 443}
_AT_ONCE = 8


class UrlFetcher:
    """Fetches pictures within the operator's rules."""

    def __init__(
        self, settings: UrlSettings, max_bytes: int, *, allow_private: bool = False
    ) -> None:
        """Set the rules.

        Args:
            settings: Hosts, time and redirects.
            max_bytes: Largest picture.
            allow_private: For tests on the loopback interface only.
        """
        self._settings, self._max_bytes = settings, max_bytes
        self._allow_private = allow_private
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, url: str) -> bytes:
        """Get one picture, in a thread.

        Raises:
            InputError: `code` is `url_forbidden` where the rules say no, else `image_missing` or
                `image_too_large`.
        """
        self._check(url)
        async with self._slots:
            return await asyncio.to_thread(self.fetch_now, url)

    def fetch_now(self, url: str) -> bytes:
        """Get one picture; see `fetch`."""
        end = time.monotonic() + self._settings.timeout_s
        for _ in range(self._settings.max_redirects + 1):
            parts = self._check(url)
            address = self._resolve(parts)
            try:
                target = self._get(parts, address, end)
            except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
                raise InputError(
                    f"the picture's address did not answer ({type(error).__name__})",
                    "image_missing",
                ) from None
            if isinstance(target, bytes):
                return target
            url = urljoin(url, target)
        raise InputError("the picture's address redirects too often", "image_missing")

    def _check(self, url: str) -> SplitResult:
        if not self._settings.allow:
            raise _forbidden("this server fetches no addresses; send the picture itself")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _forbidden("the picture's address cannot be read") from None
        host = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme not in _PORTS or not host or parts.username or parts.password:
            raise _forbidden("the picture's address must be a plain http or https one")
        if port not in (None, _PORTS[parts.scheme]) and not self._allow_private:
            raise _forbidden("the picture's address must use the usual port")
        if not any(_matches(host, allowed) for allowed in self._settings.allow):
            raise _forbidden("the picture's host is not on the server's list")
        return parts

    def _resolve(self, parts: SplitResult) -> str:
        assert parts.hostname
        port = parts.port or _PORTS[parts.scheme]
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise InputError("the picture's host is unknown", "image_missing") from None
        addresses = {str(entry[4][0]) for entry in found}
        # One bad address condemns the name: which one would be used is not ours to choose.
        if not self._allow_private and not all(map(is_public, addresses)):
            raise _forbidden("the picture's host is not a public one")
        return str(found[0][4][0])

    def _get(self, parts: SplitResult, address: str, end: float) -> bytes | str:
        """The picture, or where it is said to be."""
        number = f"[{address}]" if ":" in address else address
        by_number = parts._replace(netloc=f"{number}:{parts.port or _PORTS[parts.scheme]}")
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        # Connected by number, while the Host header and the certificate go by name.
        names = {"sni_hostname": parts.hostname}
        timeout, store = max(0.1, end - time.monotonic()), ssl.create_default_context()
        with (
            httpx.Client(timeout=timeout, trust_env=False, verify=store) as client,
            client.stream("GET", by_number.geturl(), headers=headers, extensions=names) as response,
        ):
            return self._content(response, end)

    def _content(self, response: httpx.Response, end: float) -> bytes | str:
        location = response.headers.get("Location")
        if response.is_redirect and location:
            return str(location)
        if response.status_code != httpx.codes.OK:
            raise InputError(
                f"the picture's address answered {response.status_code}", "image_missing"
            )
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > self._max_bytes:
                raise InputError(
                    f"the picture has more than {self._max_bytes} bytes", "image_too_large"
                )
            if time.monotonic() > end:
                raise TimeoutError
        return bytes(content)


def is_public(address: str) -> bool:
    """Whether an address belongs to the open internet, also when wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        # NAT64 carries an IPv4 address in its last 32 bits.
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def _matches(host: str, allowed: str) -> bool:
    allowed = allowed.lower()
    return fnmatchcase(host, allowed) if allowed.startswith("*.") else host == allowed


def _forbidden(message: str) -> InputError:
    return InputError(message, "url_forbidden")
