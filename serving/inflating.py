"""Compressed request bodies, inflated piece by piece while they arrive."""

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.types import Message, Receive

from amlr.serving.problems import ApiError

# Also what is inflated before the event loop gets its turn again: about a millisecond.
PIECE_BYTES = 256_000
_ACCEPTED = ("gzip", "x-gzip", "deflate")
# Recognize the headers of gzip and zlib.
_ANY_HEADER = zlib.MAX_WBITS | 32


def inflated(receive: Receive, encoding: str) -> Receive:
    """The same body without its `Content-Encoding`.

    Args:
        receive: Gives the body as it arrives.
        encoding: Value of the header, empty where there is none.

    Raises:
        ApiError: The encoding is not one of gzip and deflate.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return receive
    if encoding not in _ACCEPTED:
        raise ApiError(
            415,
            "unsupported_content_encoding",
            f"the body's encoding is {encoding[:40]!r}; send gzip, or no Content-Encoding",
            {"Accept-Encoding": "gzip, deflate, identity"},
        )
    messages = _inflated(receive)

    async def next_message() -> Message:
        # After the last piece, whatever the connection says.
        message = await anext(messages, None)
        return await receive() if message is None else message

    return next_message


async def _inflated(receive: Receive) -> AsyncIterator[Message]:
    """Never holds more than one inflated piece, so a small body cannot become a large memory."""
    member = zlib.decompressobj(_ANY_HEADER)
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            yield message
            return
        packed, has_more = message.get("body", b""), message.get("more_body", False)
        # A full piece may have left output inside the decompressor, whatever input is left.
        is_pending = False
        while packed or is_pending:
            if member.eof and packed:  # gzip files may be joined end to end
                member = zlib.decompressobj(_ANY_HEADER)
            try:
                piece = member.decompress(packed, PIECE_BYTES)
            except zlib.error:
                raise _bad("it cannot be inflated") from None
            packed = member.unconsumed_tail or member.unused_data
            is_pending = len(piece) == PIECE_BYTES and not member.eof
            await asyncio.sleep(0)
            yield {"type": "http.request", "body": piece, "more_body": True}
    if not member.eof:
        raise _bad("it ends too early")
    yield {"type": "http.request", "body": b"", "more_body": False}


def _bad(what: str) -> ApiError:
    return ApiError(
        400,
        "encoding_invalid",
        f"Content-Encoding says that the body is compressed, but {what}; "
        "send it complete, or without that header",
    )
