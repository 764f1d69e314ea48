"""JSON of any size, read without keeping the event loop from everybody else.

The standard scanner holds the interpreter until a whole body is parsed, in a thread as well. Large
bodies are therefore read value by value in Python, which lets other threads run in between.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json import decoder, scanner
from typing import Any, TypeVar

from amlr.serving.problems import ApiError

T = TypeVar("T")
_scan_string: Callable[[str, int, bool], tuple[str, int]] = decoder.scanstring  # type: ignore[attr-defined]
_Scan = Callable[[str, int], tuple[Any, int]]
# Below the first size a body takes at most some milliseconds, below the second one where it holds
# few values. For these the way to a thread and back costs more than the parsing.
_SMALL_BYTES, _INLINE_BYTES = 64_000, 500_000
_INLINE_COMMAS = 5_000
# Python values take up to thirty times the bytes of their JSON.
MAX_VALUES = 500_000
_LONGEST_NUMBER = 1_000
# Longer strings are read in pieces of this size.
_PIECE_CHARS = 1_000_000
# An escape, also that of a surrogate pair, has at most twelve characters.
_ESCAPE_CHARS = 12
_STEPS_BACK = 100
# One thread: parsing holds the interpreter, so more threads would only wait for each other.
_PARSER = ThreadPoolExecutor(1, "amlr-parse")


def is_light(body: bytes) -> bool:
    """Whether a body may be parsed within the event loop."""
    size = len(body)
    return size < _SMALL_BYTES or (size < _INLINE_BYTES and body.count(b",") < _INLINE_COMMAS)


async def parse(function: Callable[..., T], *arguments: Any, inline: bool) -> T:
    """Call a function that parses: here, or in the thread for that."""
    if inline:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, function, *arguments)


def load_json(body: bytes, what: str = "the body") -> Any:
    """Parse JSON.

    Args:
        body: UTF-8, or UTF-16 and UTF-32 as JSON allows.
        what: What it is, for the message.

    Raises:
        ApiError: It is not JSON (400), or holds too many values (413).
    """
    try:
        if is_light(body):
            return json.loads(body)
        return _PatientDecoder(what).decode(
            body.decode(json.detect_encoding(body), "surrogatepass")
        )
    # Bad UTF-8 and bad JSON are ValueErrors; deep nesting overflows the stack.
    except (ValueError, RecursionError):
        is_gzip = body.startswith(b"\x1f\x8b")
        hint = " but gzip; say so with the header 'Content-Encoding: gzip'" if is_gzip else ""
        raise ApiError(400, "json_invalid", f"{what} is not JSON{hint}") from None


class _PatientDecoder(json.JSONDecoder):
    """The standard decoder with its scanner in Python, a limit on values, and strings in pieces."""

    def __init__(self, what: str) -> None:
        super().__init__(parse_float=_float)
        self._what, self._count = what, 0
        self.parse_string = _string
        self.parse_array = self._array
        self.parse_object = self._object
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _array(self, at: tuple[str, int], scan: _Scan) -> tuple[Any, int]:
        return decoder.JSONArray(at, self._counted(scan))  # type: ignore[attr-defined, no-any-return]

    def _object(
        self, at: tuple[str, int], strict: bool, scan: _Scan, *hooks: Any
    ) -> tuple[Any, int]:
        counted = self._counted(scan)
        return decoder.JSONObject(at, strict, counted, *hooks)  # type: ignore[attr-defined, no-any-return]

    def _counted(self, scan: _Scan) -> _Scan:
        def scan_counted(text: str, position: int) -> tuple[Any, int]:
            self._count += 1
            if self._count > MAX_VALUES:
                raise ApiError(
                    413,
                    "too_many_values",
                    f"{self._what} holds more than {MAX_VALUES} JSON values; "
                    "send fewer posts in one request",
                )
            return scan(text, position)

        return scan_counted


def _float(text: str) -> float:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError("a number is too long")
    return float(text)


def _string(text: str, begin: int, strict: bool = True) -> tuple[str, int]:
    """As `json.decoder.scanstring`, but lets other threads run while it reads a long string.

    Pieces end where no escape is cut; a string without such places is read at once.
    """
    pieces = []
    while text.find('"', begin, begin + _PIECE_CHARS) < 0 and begin + _PIECE_CHARS < len(text):
        end = _between_escapes(text, begin + _PIECE_CHARS)
        if end <= begin:
            break
        pieces.append(_scan_string(text[begin:end] + '"', 0, strict)[0])
        begin = end
    last, end = _scan_string(text, begin, strict)
    return "".join([*pieces, last]) if pieces else last, end


def _between_escapes(text: str, end: int) -> int:
    """The last place up to `end` that cuts no escape, or -1 where none is near."""
    for _ in range(_STEPS_BACK):
        backslash = text.rfind("\\", max(0, end - _ESCAPE_CHARS), end)
        if backslash < 0:
            return end
        end = backslash
    return -1
