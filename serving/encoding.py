"""Answers as JSON bytes, the same over every protocol."""

import json
from typing import Any


def json_bytes(value: Any) -> bytes:
    """Compact JSON; half surrogates that a client sent come back as they were."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
