"""The outermost layer: request ids, API key, body limits, one log line and metrics a request.

Plain ASGI: nothing is buffered, and a client that leaves is still seen by the route.
"""

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette import routing
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amlr.serving.inflating import inflated
from amlr.serving.problems import CLIENT_LEFT, ApiError, error_response, from_failure
from amlr.serving.service import TaggingService

LOG = logging.getLogger("amlr.serving.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# A stream's length is unknown and may be endless; it limits itself line by line.
_STREAM_RESERVE = 1_000_000
_METHODS: Iterable[str] = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STREAM_PATH = "/v1/tag/stream"
# Answered without a key: probes have none, and the page asks for one itself.
_OPEN = ("", "/", "/docs", "/openapi.json", "/favicon.ico")
_OPEN_BELOW = ("/static/", "/v2/health/")


class Route(routing.Route):
    """Leaves itself in the scope, for the guard's record; only newer Starlettes do that."""

    def matches(self, scope: Scope) -> tuple[routing.Match, Scope]:
        """As any route."""
        match, found = super().matches(scope)
        return match, {**found, "route": self}


@dataclass(slots=True)
class Exchange:
    """The record of one request; routes add to it through `request.state.exchange`.

    Attributes:
        request_id: Its id.
        method: HTTP method.
        path: Path without the prefix that the application is served under.
        started: Monotonic time at which its headers arrived.
        status: Status sent, 0 before.
        reserved: Bytes that the queue counts for its body.
        facts: Added to the log line.
    """

    request_id: str
    method: str
    path: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    reserved: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Guard:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, service: TaggingService) -> None:
        """Wrap `app`."""
        self._app, self._service = app, service
        self._limits = service.settings.limits
        self._keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        strip_repeated_prefix(scope)
        headers = {k: v.decode("latin-1") for k, v in scope["headers"]}
        client_id = headers.get(b"x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        exchange = Exchange(request_id, scope["method"], route_path(scope))
        is_head = exchange.method == "HEAD"
        if is_head:  # answered as GET is, without the body; the server keeps its own scope
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["exchange"] = exchange

        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif is_head:
                message = {**message, "body": b""}
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    await send(message)
            except TimeoutError:  # a reader that stalls would hold its stream's work for ever
                raise ApiError(
                    CLIENT_LEFT, "client_stalled", "the client stopped reading"
                ) from None

        try:
            self._check_key(headers, exchange)
            self._reserve(headers, exchange)
            body = inflated(receive, headers.get(b"content-encoding", ""))
            await self._app(scope, self._bounded(body, exchange), send_answer)
        except Exception as error:
            problem = from_failure(error)
            if problem.code == "internal":
                LOG.exception("unexpected error", extra={"request_id": exchange.request_id})
            await self._refuse(problem, scope, exchange, receive, send_answer)
        finally:
            self._service.queue.release(exchange.reserved)
            self._record(scope, exchange)

    def _check_key(self, headers: dict[bytes, str], exchange: Exchange) -> None:
        if not self._keys or is_open(exchange.path):
            return
        scheme, _, value = headers.get(b"authorization", "").partition(" ")
        key = value if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        # All keys are compared, each in constant time: the time tells nothing about any of them.
        matches = [hmac.compare_digest(key.encode("latin-1"), known) for known in self._keys]
        if not any(matches):
            raise ApiError(
                401,
                "unauthorized",
                "send a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
                {"WWW-Authenticate": "Bearer"},
            )

    def _reserve(self, headers: dict[bytes, str], exchange: Exchange) -> None:
        """Count the body before a byte of it is read."""
        if exchange.path == STREAM_PATH:
            self._grow(exchange, _STREAM_RESERVE)
            return
        length = headers.get(b"content-length", "0")
        size = int(length) if length.isascii() and length.isdigit() else 0
        if size > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        self._grow(exchange, size)

    def _grow(self, exchange: Exchange, size: int) -> None:
        if not self._service.queue.reserve(size):
            self._service.metrics.refusals.labels("bytes_full").inc()
            raise ApiError(
                429, "bytes_full", "too many bytes are waiting; try later", {"Retry-After": "1"}
            )
        exchange.reserved += size

    def _bounded(self, receive: Receive, exchange: Exchange) -> Receive:
        """Bound the pauses of a client that sends its body, and the body's size once inflated."""
        is_stream = exchange.path == STREAM_PATH
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # waiting for the client to leave
                return await receive()
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, "body_timeout", "the body did not arrive in time", {"Connection": "close"}
                ) from None
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if not is_stream and received > exchange.reserved:
                if received > self._limits.max_body_bytes:
                    raise _too_large(self._limits.max_body_bytes)
                self._grow(exchange, received - exchange.reserved)
            return message

        return bounded

    async def _refuse(
        self, error: ApiError, scope: Scope, exchange: Exchange, receive: Receive, send: Send
    ) -> None:
        if exchange.status:
            return  # the answer has begun; all that is left is to end it early
        exchange.facts["error"] = error.code
        if error.status == CLIENT_LEFT:
            exchange.status = CLIENT_LEFT
            return
        response = error_response(error, exchange.request_id, is_v2=is_v2(exchange.path))
        with contextlib.suppress(OSError):
            await response(scope, receive, send)

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        metrics = self._service.metrics
        method = exchange.method if exchange.method in _METHODS else "other"
        metrics.requests.labels(route, method, str(exchange.status)).inc()
        metrics.request_s.labels(route).observe(seconds)
        LOG.log(
            logging.DEBUG if is_quiet(exchange.path) else logging.INFO,
            "request",
            extra={
                "request_id": exchange.request_id,
                "method": method,
                "route": route,
                "status": exchange.status,
                "duration_ms": round(1000 * seconds, 2),
                "bytes_in": exchange.reserved,
                **exchange.facts,
            },
        )


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body may have at most {limit} bytes; send fewer posts or smaller pictures",
        {"Connection": "close"},
    )


def route_path(scope: Scope) -> str:
    """The path without the prefix (`root_path`) of a proxy or of a mounting application."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :]
    return path


def strip_repeated_prefix(scope: Scope) -> None:
    """Treat a proxy that keeps the prefix like one that removes it.

    uvicorn puts `root_path` before every path, also before one that has it already.
    """
    prefix, rest = str(scope.get("root_path", "")), route_path(scope)
    if prefix and (rest == prefix or rest.startswith(f"{prefix}/")):
        scope["path"] = rest


def is_v2(path: str) -> bool:
    """Whether a route path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def is_open(path: str) -> bool:
    """Whether a route path is answered without a key."""
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def is_quiet(path: str) -> bool:
    """Whether requests for a route path come too often for the log: probes, the page's files."""
    return path.startswith(_OPEN_BELOW)
