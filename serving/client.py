"""Client of `amlr-serve`: sync and async, retries with jitter where trying again is right.

Needs `httpx` only. Refusals (429), servers that start or stop (503) and connections that broke
before an answer are tried again; tagging changes nothing on the server, so that is always safe.
"""

import asyncio
import base64
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx

from amlr.errors import AmlrError, InputError, OverloadedError
from amlr.runtime.results import Entity, Post, Problem, Result
from amlr.serving.encoding import json_bytes

_AGAIN = (429, 503)
_JSON = {"Content-Type": "application/json"}
_Outcome = httpx.Response | httpx.TransportError


class ServerError(AmlrError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
        code: The server's name for it.
        request_id: What to look for in its log.
    """

    def __init__(self, status: int, code: str, message: str, request_id: str | None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


class UnreachableError(AmlrError, ConnectionError):
    """No answer came from the server, also at the last try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """The rule for trying again.

    Attributes:
        attempts: Tries in all.
        base_s: First pause; it doubles with every try, and its length is random up to that.
        max_s: Longest pause, also where the server names a longer one.
    """

    attempts: int = 5
    base_s: float = 0.1
    max_s: float = 10.0

    def pause_s(self, attempt: int, retry_after: str | None) -> float:
        """Pause after the given try (0 first): full jitter, on top of what the server asks for."""
        jitter = random.uniform(0.0, min(self.max_s, self.base_s * 2.0**attempt))
        asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        return min(self.max_s, asked + jitter)


class _Base:
    _open: ClassVar[Any]

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
    ) -> None:
        """Name the server.

        Args:
            url: Its address.
            api_key: Sent with every request.
            timeout_s: Of one try.
            retries: When to try again.

        Raises:
            InputError: The address or the key cannot be used.
        """
        headers = {"Authorization": f"Bearer {_checked_key(api_key)}".encode()} if api_key else {}
        try:
            base_url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InputError(f"the address {url!r} is no URL ({error})") from None
        if base_url.scheme not in ("http", "https") or not base_url.host:
            raise InputError(f"the address {url!r} must begin with http:// or https:// and a host")
        self._http: Any = self._open(base_url=base_url, headers=headers, timeout=timeout_s)
        self._retries = retries or Retries()

    def _pause(self, attempt: int, outcome: _Outcome) -> float | None:
        """Seconds until the next try, or None where there is none."""
        if attempt + 1 >= self._retries.attempts:
            return None
        if isinstance(outcome, httpx.LocalProtocolError):  # it was never sent, and never will be
            return None
        if isinstance(outcome, httpx.TransportError):
            return self._retries.pause_s(attempt, None)
        if outcome.status_code not in _AGAIN:
            return None
        return self._retries.pause_s(attempt, outcome.headers.get("Retry-After"))


class Client(_Base):
    """Synchronous client; one may serve many threads.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     client.tag("Kevin Love at Quicken Loans Arena", "photo.jpg").entities
    """

    _open = httpx.Client
    _http: httpx.Client

    def tag(
        self, text: str, image: str | Path | bytes | None = None, *, deadline_ms: int | None = None
    ) -> Result:
        """Tag one post; a path is read here, not on the server.

        Raises:
            ServerError: The server answered with an error.
            OverloadedError: It still refuses after the last try.
            UnreachableError: No answer came.
        """
        return self.tag_batch([Post(text, image)], deadline_ms=deadline_ms)[0]

    def tag_batch(self, posts: Iterable[Post], *, deadline_ms: int | None = None) -> list[Result]:
        """Tag several posts in one request; order is kept, a bad post has an `error`.

        As with the engine, a picture that cannot be read only gives a warning.
        """
        body, problems = _pack(posts, deadline_ms)
        return _unpack(self._post(body), problems) if problems else []

    def tag_many(self, posts: Iterable[Post], *, size: int = 32) -> Iterator[Result]:
        """Tag any number of posts, `size` in a request; yields in order."""
        for chunk in _chunks(posts, size):
            yield from self.tag_batch(chunk)

    def ready(self) -> bool:
        """Whether the server says it is ready; false also where it cannot be reached."""
        try:
            return self._http.get("/v2/health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _post(self, body: bytes) -> httpx.Response:
        for attempt in count():
            try:
                outcome: _Outcome = self._http.post("/v1/tag", content=body, headers=_JSON)
            except httpx.TransportError as error:
                outcome = error
            pause = self._pause(attempt, outcome)
            if pause is None:
                break
            time.sleep(pause)
        return _checked(outcome)


class AsyncClient(_Base):
    """The same for asyncio."""

    _open = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def tag(
        self, text: str, image: str | Path | bytes | None = None, *, deadline_ms: int | None = None
    ) -> Result:
        """As `Client.tag`."""
        return (await self.tag_batch([Post(text, image)], deadline_ms=deadline_ms))[0]

    async def tag_batch(
        self, posts: Iterable[Post], *, deadline_ms: int | None = None
    ) -> list[Result]:
        """As `Client.tag_batch`."""
        body, problems = await asyncio.to_thread(_pack, posts, deadline_ms)
        return _unpack(await self._post(body), problems) if problems else []

    async def tag_many(self, posts: Iterable[Post], *, size: int = 32) -> AsyncIterator[Result]:
        """As `Client.tag_many`."""
        for chunk in _chunks(posts, size):
            for result in await self.tag_batch(chunk):
                yield result

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            return (await self._http.get("/v2/health/ready")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _post(self, body: bytes) -> httpx.Response:
        for attempt in count():
            try:
                outcome: _Outcome = await self._http.post("/v1/tag", content=body, headers=_JSON)
            except httpx.TransportError as error:
                outcome = error
            pause = self._pause(attempt, outcome)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return _checked(outcome)


def _pack(posts: Iterable[Post], deadline_ms: int | None) -> tuple[bytes, list[Problem | None]]:
    """A request's body, and what was wrong with the picture of each post."""
    packed = [_post_value(post) for post in posts]
    body: dict[str, Any] = {"posts": [value for value, _ in packed]}
    if deadline_ms is not None:
        body["deadline_ms"] = deadline_ms
    # Half a surrogate pair, which UTF-8 cannot hold, is sent as an escape.
    return json_bytes(body), [problem for _, problem in packed]


def _post_value(post: Post) -> tuple[dict[str, Any], Problem | None]:
    value: dict[str, Any] = {"text": post.text}
    problem: Problem | None = None
    image = post.image
    if isinstance(image, str | Path):
        image, problem = _read(image)
    if image is not None:
        if not isinstance(image, bytes | bytearray | memoryview):
            raise InputError(f"the client sends paths and bytes, got {type(image).__name__}")
        value["image"] = base64.b64encode(image).decode()
    if post.words is not None:
        value["words"] = [[int(start), int(end)] for start, end in post.words]
    return value, problem


def _read(path: str | Path) -> tuple[bytes | None, Problem | None]:
    try:
        return Path(path).read_bytes(), None
    except FileNotFoundError:
        return None, {"code": "image_missing", "message": f"no picture at {path}; check the path"}
    # An embedded NUL is a ValueError.
    except (OSError, ValueError) as error:
        message = f"cannot read the picture file: {error}"
        return None, {"code": "image_unreadable", "message": message}


def _unpack(response: httpx.Response, problems: list[Problem | None]) -> list[Result]:
    results = [_result(values) for values in response.json()["results"]]
    return [
        result if problem is None else replace(result, warnings=(problem, *result.warnings))
        for result, problem in zip(results, problems, strict=True)
    ]


def _checked_key(key: str) -> str:
    if key != key.strip() or any(c < " " or c == "\x7f" for c in key):
        raise InputError(
            "api_key begins or ends with white space or holds a line break, which no HTTP header "
            "may; a key read from a file needs .strip()"
        )
    return key


def _chunks(posts: Iterable[Post], size: int) -> Iterator[Sequence[Post]]:
    left = iter(posts)
    while chunk := list(islice(left, size)):
        yield chunk


def _checked(outcome: _Outcome) -> httpx.Response:
    if isinstance(outcome, httpx.LocalProtocolError):
        raise InputError(f"the request cannot be sent: {outcome}") from outcome
    if isinstance(outcome, httpx.TransportError):
        raise UnreachableError(
            f"no answer from the server ({type(outcome).__name__}); is it running, and is the "
            "address right?"
        ) from outcome
    if outcome.is_success:
        return outcome
    try:
        error = outcome.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "http_error", f"the server answered {outcome.status_code}"
    if outcome.status_code in _AGAIN:
        raise OverloadedError(f"{message} ({code}, after the last try)")
    raise ServerError(outcome.status_code, code, message, outcome.headers.get("X-Request-Id"))


def _result(values: dict[str, Any]) -> Result:
    return Result(
        entities=tuple(Entity(**entity) for entity in values["entities"]),
        image_used=values["image_used"],
        provider=values["provider"],
        precision=values["precision"],
        # Servers of older versions do not say.
        certified=values.get("certified"),
        warnings=tuple(values["warnings"]),
        error=values["error"],
    )
