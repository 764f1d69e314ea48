"""Answers as bytes, the same over every protocol."""

import json
from typing import Any

# Made once: `json.dumps` with options builds an encoder a call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def json_bytes(value: Any) -> bytes:
    """Compact JSON; half surrogates that a client sent come back as they were."""
    try:
        return _ENCODE(value).encode()
    except UnicodeEncodeError:
        return _ENCODE_ASCII(value).encode()
