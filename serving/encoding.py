"""Answers and tensors as bytes, and pictures from base64, the same over every protocol."""

import base64
import binascii
import json
import struct
from collections.abc import Callable, Iterable
from typing import Any

from amlr.errors import InputError

# Made once: `json.dumps` with options builds an encoder a call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":")).encode
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


def decode_base64(text: str) -> bytes:
    """Bytes of strict base64 (standard alphabet, padded).

    Raises:
        InputError: It is none; code `image_invalid`.
    """
    try:
        # The standard library lets some needless padding pass.
        if len(text) % 4 == 0 and not text.endswith("==="):
            return _DECODE(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InputError("the picture is not valid base64", code="image_invalid")


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """A BYTES tensor: each element after its length (4 bytes, little endian)."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def json_bytes(value: Any) -> bytes:
    """Compact JSON; half surrogates that a client sent come back as they were."""
    try:
        return _ENCODE(value).encode()
    except UnicodeEncodeError:
        return _ENCODE_ASCII(value).encode()
