"""Compressed request bodies, inflated piece by piece while they arrive."""

import asyncio
import zlib

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
    return _Inflater(receive).receive


class _Inflater:
    """Never holds more than one inflated piece, so a small body cannot become a large memory."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._member = zlib.decompressobj(_ANY_HEADER)
        self._packed = b""
        self._is_last = self._is_done = False
        # A full piece may have left output inside the decompressor, whatever input is left.
        self._is_pending = False

    async def receive(self) -> Message:
        """The next piece; after the last one, whatever the connection says."""
        if self._is_done:
            return await self._receive()
        while not (self._packed or self._is_pending or self._is_last):
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed = message.get("body", b"")
            self._is_last = not message.get("more_body", False)
        piece = self._next_piece()
        has_more = bool(self._packed) or self._is_pending
        if not has_more and self._is_last:
            self._is_done = True
            if not self._member.eof:
                raise _bad("it ends too early")
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": not self._is_done}

    def _next_piece(self) -> bytes:
        if self._member.eof and self._packed:  # gzip files may be joined end to end
            self._member = zlib.decompressobj(_ANY_HEADER)
        try:
            piece = self._member.decompress(self._packed, PIECE_BYTES)
        except zlib.error:
            raise _bad("it cannot be inflated") from None
        self._packed = self._member.unconsumed_tail or self._member.unused_data
        self._is_pending = len(piece) == PIECE_BYTES and not self._member.eof
        return piece


def _bad(what: str) -> ApiError:
    return ApiError(
        400,
        "encoding_invalid",
        f"Content-Encoding says that the body is compressed, but {what}; "
        "send it complete, or without that header",
    )
