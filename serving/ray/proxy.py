"""A middleware of Ray's HTTP proxy: requests of a replica that died are sent to another one.

Ray Serve answers 500 to every request that a killed replica had taken. Tagging changes nothing, so
asking again is always safe. Switched on by an environment variable of the nodes:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=amlr.serving.ray.proxy:middlewares
"""

import logging
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amlr.serving.problems import ApiError, error_response

LOG = logging.getLogger("amlr.serving.ray.proxy")
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "amlr.serving.ray.proxy:middlewares"
TRIES_HEADER = b"x-amlr-tries"
_TRIES = 3
# A larger body is not kept for a second try; its client is told to try again.
_MAX_KEPT_BYTES = 32_000_000
_TRY_LATER = ApiError(503, "replica_died", "try again", {"Retry-After": "1"})


def middlewares() -> list[Any]:
    """For Ray Serve to call in each proxy."""
    return [Middleware(AskAgain)]


class AskAgain:
    """Sends a request again where its replica died before it began to answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before the proxy's own application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        attempt = _Attempt(receive, send)
        for number in range(1, _TRIES + 1):
            attempt.begin(number)
            # The proxy changes the scope, so each try gets a copy.
            await self._app(dict(scope), attempt.receive, attempt.send)
            if attempt.started or attempt.left:
                return
            if not attempt.kept:
                break
            LOG.warning("a replica died; asking another one", extra={"try": number})
        await error_response(_TRY_LATER, "")(scope, receive, send)


class _Attempt:
    """Remembers what was received, so that it can be received again."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._messages: list[Message] = []
        self._size = self._next = self._number = 0
        self.started = self.left = False
        self.kept = True

    def begin(self, number: int) -> None:
        self._next, self._number = 0, number

    async def receive(self) -> Message:
        if self._next < len(self._messages):
            self._next += 1
            return self._messages[self._next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
        elif not self.started:
            self._size += len(message.get("body", b""))
            self.kept = self.kept and self._size <= _MAX_KEPT_BYTES
            if self.kept:
                self._messages.append(message)
                self._next += 1
            else:
                self._messages.clear()
                self._next = 0
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._messages.clear()
            self._next = 0
            if self._number > 1:
                message["headers"] = [
                    *message.get("headers", ()),
                    (TRIES_HEADER, str(self._number).encode()),
                ]
        await self._send(message)
