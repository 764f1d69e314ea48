"""Base64 is taken strictly."""

import base64

import pytest

from amlr.errors import InputError
from amlr.serving.parsing import decode_base64


@pytest.mark.parametrize("size", [0, 1, 2, 3, 47, 48, 49, 10_000])
def test_bytes_come_back(size: int) -> None:
    data = bytes(i * 7 % 256 for i in range(size))
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("size", "width"), [(1, 1), (48, 1), (48, 4), (10_000, 76), (10_000, 77), (1_600_000, 76)]
)
def test_broken_lines_are_joined(size: int, width: int) -> None:
    data = bytes(i * 7 % 256 for i in range(size))
    text = base64.b64encode(data).decode()
    for gap in ("\n", "\r\n", " ", "\t"):
        lines = gap.join(text[i : i + width] for i in range(0, len(text), width))
        assert decode_base64(lines) == data
        assert decode_base64(f"data:image/jpeg;base64,{gap}{lines}{gap}") == data


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "QU\u00a0JD",
        "data:image/png,QUJD",
        "data:base64,QUJD",
        "data:image/png;base64,QUJ",
        "xdata:image/png;base64,QUJD",
        "AB",
        "ABC",
        "A===",
        "AB==CD==",
        "AB=C",
        "QU-_",
        "é",
        "QUJD=",
        "QUJD====",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not valid base64") as caught:
        decode_base64(text)
    assert caught.value.code == "image_invalid"
    with pytest.raises(InputError):
        decode_base64("QUJD" * 100 + text)
