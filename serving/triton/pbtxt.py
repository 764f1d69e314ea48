"""Protocol-buffer text format from plain values, without the protobuf library.

`tritonclient` holds the real message class; the tests parse every written file with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class EnumValue(str):
    """A name that is written without quotes."""

    __slots__ = ()


def entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A `map<string, ...>` field: one message a key, as the text format has it."""
    return [{"key": key, "value": value} for key, value in values.items()]


def to_text(message: Mapping[str, Any]) -> str:
    """A message as text: dicts are messages, lists repeated fields.

    Example:
        >>> print(to_text({"name": "amlr", "dims": [1, 2]}), end="")
        name: "amlr"
        dims: 1
        dims: 2
    """
    return "".join(f"{line}\n" for line in _message(message, ""))


def _message(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        repeated = value if isinstance(value, list) else [value]
        for item in repeated:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _message(item, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, EnumValue):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{_escaped(value.encode())}"'
    raise TypeError(f"{type(value).__name__} has no text form")


def _escaped(content: Sequence[int]) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}"
        for byte in content
    )
