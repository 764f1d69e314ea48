"""`POST /v1/tag/stream`: JSON lines in and out, a bounded number of posts under way at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from amlr.serving.answers import answer_dict, error_dict, exchange_of, service_of
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import STREAM_PATH, Exchange, Route
from amlr.serving.jobs import RefusedError
from amlr.serving.json_reading import is_light, load_json, parse
from amlr.serving.parsing import PreparedPost, bad_post, content_type, prepare_post
from amlr.serving.problems import NOT_OPEN, ApiError, from_failure
from amlr.serving.service import TaggingService

# Two full batches of the default size: enough to keep workers busy, little for others to wait for.
WINDOW = 32
_RETRY_S = 0.05
# A stream has no deadline; this only bounds a line on a server that never gets to it.
_LINE_DEADLINE_S = 600.0
_Pending = tuple[PreparedPost, asyncio.Future[Any] | None]


async def tag_stream(request: Request) -> Response:
    """JSON lines in (`{"id", "text", "image"}`), JSON lines out, in order, while both flow.

    Any number of lines: the server reads on as it works, so the client must read while it sends.
    A bad line is answered with its error. Streams yield to other requests instead of being refused.
    """
    if content_type(request) not in ("application/x-ndjson", "application/jsonl"):
        raise ApiError(415, "unsupported_content_type", "send application/x-ndjson")
    service = service_of(request)
    service.check_open()
    return LinesResponse(tag_lines(request.stream(), service, exchange_of(request)))


class LinesResponse(Response):
    """Sends lines while the body is still being read.

    Starlette's own streaming response listens for a leaving client, and so eats the body.
    """

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def tag_lines(
    chunks: AsyncIterator[bytes], service: TaggingService, exchange: Exchange
) -> AsyncIterator[bytes]:
    """Answer lines in order.

    Args:
        chunks: The body as it arrives.
        service: Where posts are tagged.
        exchange: Counts posts for the log.

    Yields:
        One JSON line a post.
    """
    pending: deque[_Pending] = deque()
    count = 0
    lines = split_lines(chunks, service.settings.limits.max_line_bytes)
    reading: asyncio.Future[bytes | None] | None = _next(lines)
    try:
        while reading or pending:
            if pending and (not reading or len(pending) >= WINDOW or _is_done(pending[0])):
                yield await _answer(pending.popleft(), service)
                continue
            assert reading
            # A client may wait for an answer before it sends its next line.
            first = pending[0][1] if pending else None
            waited = {reading, first} if first else {reading}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                line = reading.result()
                reading = None if line is None else _next(lines)
                if line is not None:
                    pending.append(await _begin(line, service))
                    count += 1
    except (ApiError, RefusedError) as failure:
        error = from_failure(failure)
        # The answer has begun with 200: the last line is the only place left for an error.
        while pending:
            yield await _answer(pending.popleft(), service)
        yield _line({"error": {"code": error.code, "message": str(error)}})
    except ClientDisconnect:
        exchange.facts["error"] = "client_left"
    finally:
        exchange.facts["posts"] = count
        if reading:
            reading.cancel()
        left = [outcome for _, outcome in pending if outcome]
        for outcome in left:
            outcome.cancel()
        service.metrics.cancelled.inc(len(left))


async def split_lines(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Lines of a body, blank ones left out.

    Raises:
        ApiError: A line is longer than `limit`.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            line = b"".join([*parts, piece]).strip()
            parts, size = [], 0
            if line:
                yield line
        parts.append(rest)
        size += len(rest)
        if size > limit:
            raise ApiError(413, "line_too_long", f"a line may have at most {limit} bytes")
    if line := b"".join(parts).strip():
        yield line


def _next(lines: AsyncIterator[bytes]) -> asyncio.Future[bytes | None]:
    """Begin to read a line; None at the end."""
    reading = asyncio.ensure_future(anext(lines, None))
    reading.add_done_callback(_see)
    return reading


def _see(done: asyncio.Future[Any]) -> None:
    """Nobody may be left to ask for the error of a stream that has ended."""
    if not done.cancelled():
        done.exception()


async def _begin(line: bytes, service: TaggingService) -> _Pending:
    prepared = await parse(_parse, line, service, inline=is_light(line))
    if prepared.post is None:
        return prepared, None
    while True:
        try:
            (job,) = service.submit([prepared.post], _LINE_DEADLINE_S, is_stream=True)
        except RefusedError as error:
            if error.cause in NOT_OPEN:
                raise
            await asyncio.sleep(_RETRY_S)
        else:
            outcome = asyncio.wrap_future(job.future)
            outcome.add_done_callback(_see)
            return prepared, outcome


def _parse(line: bytes, service: TaggingService) -> PreparedPost:
    try:
        prepared = prepare_post(load_json(line, "the line"), service.settings.limits)
    except (ApiError, RefusedError) as failure:
        error = from_failure(failure)
        return bad_post(None, error.code, str(error))
    if prepared.image_url is not None:
        return bad_post(
            None, "url_forbidden", "streams fetch no addresses; send the picture itself"
        )
    return prepared


def _is_done(pending: _Pending) -> bool:
    return pending[1] is None or pending[1].done()


async def _answer(pending: _Pending, service: TaggingService) -> bytes:
    prepared, waited = pending
    if waited is None:
        return _line(error_dict(prepared))
    (outcome,) = await asyncio.gather(waited, return_exceptions=True)
    return _line(answer_dict(service, prepared, outcome))


def _line(value: dict[str, Any]) -> bytes:
    return json_bytes(value) + b"\n"


ROUTES = [Route(STREAM_PATH, tag_stream, methods=["POST"])]
