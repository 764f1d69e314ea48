"""Answers and tensors as bytes, and pictures from base64, the same over every protocol."""

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

from amlr.errors import InputError

# Made once: `json.dumps` with options builds an encoder a call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_Decode = Callable[..., bytes]


def _decoder() -> _Decode:
    try:
        import pybase64
    # A third of the server's work on a post with a picture, but nothing depends on it.
    except ImportError:
        return base64.b64decode
    decode: _Decode = pybase64.b64decode
    return decode


_DECODE = _decoder()


# A multiple of four; decoding holds the interpreter, so long pictures are decoded in pieces.
_PIECE_CHARS = 1_000_000
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_NO_WHITE_SPACE = str.maketrans("", "", " \t\r\n\f")


def decode_base64(text: str) -> bytes:
    """Bytes of strict base64 (standard alphabet, padded).

    Lines may be broken, as mail and many tools do, and a data URI may hold it, as browsers do.

    Raises:
        InputError: It is none; code `image_invalid`.
    """
    if (uri := _DATA_URI.match(text)) is not None:
        text = text[uri.end() :]
    try:
        return _strict(text)
    except (binascii.Error, ValueError):
        pass
    try:
        return _strict("".join(piece.translate(_NO_WHITE_SPACE) for piece in _pieces(text)))
    except (binascii.Error, ValueError):
        raise InputError("the picture is not valid base64", code="image_invalid") from None


def _strict(text: str) -> bytes:
    # The standard library lets some needless padding pass, and pieces would let it pass inside.
    if len(text) % 4 or text.endswith("===") or text.find("=", 0, -2) >= 0:
        raise ValueError
    return b"".join(_DECODE(piece, validate=True) for piece in _pieces(text))


def _pieces(text: str) -> Iterable[str]:
    if len(text) <= _PIECE_CHARS:
        return (text,)
    return (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """A BYTES tensor: each element after its length (4 bytes, little endian)."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def json_bytes(value: Any) -> bytes:
    """Compact JSON; half surrogates that a client sent come back as they were."""
    try:
        return _ENCODE(value).encode()
    except UnicodeEncodeError:
        return _ENCODE_ASCII(value).encode()
