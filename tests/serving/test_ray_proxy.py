"""The proxy's second try, against an application that dies like a killed replica: silently."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send

from amlr.serving.ray import proxy
from amlr.serving.ray.proxy import AskAgain, middlewares

PIECES = [b"one ", b"two ", b"three"]


class Dying:
    """Reads some of the body; gives no answer at its first `deaths` calls."""

    def __init__(self, deaths: int, pieces: int = len(PIECES)) -> None:
        self.deaths, self.pieces, self.bodies = deaths, pieces, list[bytes]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        dies = len(self.bodies) < self.deaths
        body = b""
        for _ in range(self.pieces if dies else len(PIECES)):
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message["body"]
        self.bodies.append(body)
        if not dies:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})


def ask(app: Dying, pieces: list[bytes] = PIECES, *, leaves: bool = False) -> list[Any]:
    """What a client is sent."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]}
        for piece in pieces
    ]
    if leaves:
        messages[-1] = {"type": "http.disconnect"}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(AskAgain(app)({"type": "http"}, receive, send))
    return sent


def test_a_living_replica_is_asked_once() -> None:
    app = Dying(0)
    start, body = ask(app)
    assert (start["status"], start["headers"], body["body"]) == (200, [], b"one two three")
    assert app.bodies == [b"one two three"]


def test_a_dead_one_is_replaced_whatever_it_had_read() -> None:
    for read in range(len(PIECES) + 1):
        app = Dying(1, pieces=read)
        start, body = ask(app)
        assert (start["status"], body["body"]) == (200, b"one two three")
        assert start["headers"] == [(proxy.TRIES_HEADER, b"2")]


def test_when_all_die_the_client_is_told_to_come_back() -> None:
    app = Dying(9)
    start, _ = ask(app)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert len(app.bodies) == proxy._TRIES


def test_a_body_too_large_to_keep_is_not_sent_by_halves(monkeypatch: Any) -> None:
    monkeypatch.setattr(proxy, "_MAX_KEPT_BYTES", 6)
    app = Dying(1)
    start, _ = ask(app)
    assert start["status"] == 503
    assert len(app.bodies) == 1
    assert ask(Dying(0))[1]["body"] == b"one two three"


def test_nobody_is_asked_for_a_client_that_left() -> None:
    app = Dying(1)
    assert ask(app, leaves=True) == []
    assert len(app.bodies) == 1


def test_ray_gets_it_as_a_middleware() -> None:
    (middleware,) = middlewares()
    assert isinstance(middleware.cls(Dying(0)), AskAgain)
