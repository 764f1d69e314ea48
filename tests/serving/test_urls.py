"""Fetching by address against a little server on the loopback interface."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from amlr.errors import InputError
from amlr.serving.settings import UrlSettings
from amlr.serving.urls import UrlFetcher, is_public


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        port = self.connection.getsockname()[1]
        targets = {
            "/loop": "/loop",
            "/away": f"http://localhost:{port}/picture",
            "/once": "/picture",
        }
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
        elif self.path == "/picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture of " + self.headers["Host"].encode())
        elif self.path == "/big":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 5000)
        else:
            self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def fetch(url: str, allow: str = "127.0.0.1") -> bytes:
    rules = UrlSettings(allow=(allow,), timeout_s=5)
    return UrlFetcher(rules, 1000, allow_private=True).fetch_now(url)


def test_a_picture_and_a_redirect_within_the_list(port: int) -> None:
    expected = f"picture of 127.0.0.1:{port}".encode()
    assert fetch(f"http://127.0.0.1:{port}/picture") == expected
    assert fetch(f"http://127.0.0.1:{port}/once") == expected


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/away", "url_forbidden"),
        ("/loop", "image_missing"),
        ("/big", "image_too_large"),
        ("/missing", "image_missing"),
    ],
)
def test_what_is_refused(port: int, path: str, code: str) -> None:
    with pytest.raises(InputError) as refused:
        fetch(f"http://127.0.0.1:{port}{path}")
    assert refused.value.code == code


def test_a_listed_name_that_leads_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: Any, **options: Any) -> list[Any]:
        return [(2, 1, 6, "", (a, 80)) for a in ("93.184.215.14", "10.0.0.7")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fetcher = UrlFetcher(UrlSettings(allow=("*.example.org",)), 1000)
    with pytest.raises(InputError) as refused:
        fetcher.fetch_now("http://pictures.example.org/a.png")
    assert refused.value.code == "url_forbidden"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected
