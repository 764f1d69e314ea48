"""Texts in every form that people save them in come back, or are refused in one line."""

import codecs
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amlr.errors import InputError
from amlr.runtime.text_files import AsUtf8, read_text, text_form

# Name of a codec and the mark that goes before its bytes.
MARKED = {
    "utf-8-sig": ("utf-8", codecs.BOM_UTF8),
    "utf-16-le": ("utf-16-le", codecs.BOM_UTF16_LE),
    "utf-16-be": ("utf-16-be", codecs.BOM_UTF16_BE),
    "utf-32-le": ("utf-32-le", codecs.BOM_UTF32_LE),
    "utf-32-be": ("utf-32-be", codecs.BOM_UTF32_BE),
    "utf-8": ("utf-8", b""),
}
LINE = st.text(
    st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]), max_size=12
)


def written(lines: list[str], form: str, end: str) -> bytes:
    codec, mark = MARKED[form]
    return mark + "".join(line + end for line in lines).encode(codec)


@settings(max_examples=50)
@given(st.lists(LINE, min_size=1), st.sampled_from(sorted(MARKED)), st.sampled_from("\n\r"))
def test_lines_come_back_from_every_form(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], form: str, end: str
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(written(lines, form, end))
    assert read_text(path, "text") == "".join(line + "\n" for line in lines)


def test_windows_line_ends_are_left_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(written(["a", "b"], "utf-16-le", "\r\n"))
    assert read_text(path, "text") == "a\r\nb\r\n"


@given(
    st.lists(LINE, min_size=2),
    st.sampled_from(sorted(MARKED)),
    st.sampled_from("\n\r"),
    st.data(),
)
def test_converted_bytes_are_read_from_any_position(
    lines: list[str], form: str, end: str, data: st.DataObject
) -> None:
    content = written(lines, form, end)
    expected = "".join(line + "\n" for line in lines).encode()
    found = text_form(content, "a.txt")
    stream = io.BufferedReader(AsUtf8(io.BytesIO(content), found), buffer_size=16)
    mark = codecs.BOM_UTF8 if found.encoding == "utf-8-sig" else b""
    for _ in range(3):
        start = data.draw(st.integers(0, len(expected) + 2))
        stream.seek(len(mark) + start)
        assert stream.read() == expected[start:]


def test_half_a_surrogate_pair_spoils_its_line_alone() -> None:
    content = codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"\x00\xd8" + b"\n\0b\0\n\0"
    lines = list(io.BufferedReader(AsUtf8(io.BytesIO(content), text_form(content, "a.txt"))))
    assert [lines[0], lines[2]] == [b"a\n", b"b\n"]
    with pytest.raises(UnicodeDecodeError):
        lines[1].decode()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("Zoë\n".encode("latin-1"), "not UTF-8 .bytes eb in line 1"),
        (b"a\nb\n\xff\n", "bytes ff in line 3"),
        ("id\ttext\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("id\ttext\n".encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (codecs.BOM_UTF16_LE + b"a", "not UTF-16"),
    ],
)
def test_other_encodings_are_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        read_text(path, "text")
    assert "a.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="give a list") as caught:
            read_text(path, "a list")
        assert caught.value.code == "data_missing"
