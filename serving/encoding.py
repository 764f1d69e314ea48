"""Answers and tensors as bytes, the same over every protocol."""

import json
import struct
from collections.abc import Iterable
from typing import Any

# Made once: `json.dumps` with options builds an encoder a call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """A BYTES tensor: each element after its length (4 bytes, little endian)."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def json_bytes(value: Any) -> bytes:
    """Compact JSON; half surrogates that a client sent come back as they were."""
    try:
        return _ENCODE(value).encode()
    except UnicodeEncodeError:
        return _ENCODE_ASCII(value).encode()
