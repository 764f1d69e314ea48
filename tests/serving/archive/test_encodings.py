"""Tables and JSON lines in every encoding: read to the last row, or one line and exit code 2."""

import codecs
import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.errors import InputError
from amlr.serving.archive.cli import tag_command
from amlr.serving.archive.plan import plan_chunks
from amlr.serving.archive.rows import Columns, Row
from amlr.serving.archive.sources import find_sources, read_piece, scan

ROWS = [("1", "Léna moved"), ("2", 'say "hi", Zoë'), ("3", "日本 \U0001f600"), ("4", "end")]
MARKS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}


def table(kind: str, end: str) -> str:
    if kind == "jsonl":
        rows = [{"id": name, "text": text} for name, text in ROWS]
        return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    file = io.StringIO(newline="")
    delimiter = "," if kind == "csv" else "\t"
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([("id", "text"), *ROWS])
    return file.getvalue()


def read(path: Path, most: int) -> list[Row]:
    (source,) = find_sources((str(path),), "auto", Columns())
    pieces = [piece for chunk in plan_chunks([scan(source)], most) for piece in chunk.pieces]
    return [row for piece in pieces for row in read_piece(source, piece, Columns())]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_all_rows_are_read_from_any_chunk(
    tmp_path: Path, kind: str, encoding: str, end: str, packed: bool
) -> None:
    content = MARKS[encoding] + table(kind, end).encode(encoding)
    path = tmp_path / f"a.{kind}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    for most in (1, 3, 50):
        rows = read(path, most)
        assert [(row.id, row.text, row.error) for row in rows] == [(*row, None) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", "id,text,légende\n1,a,b\n".encode("latin-1"), "not UTF-8 .*iconv"),
        ("a.tsv", "id\ttext\n1\ta\n".encode("utf-16-le"), "without a byte order mark"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "without a byte order mark"),
        ("a.csv", codecs.BOM_UTF16_LE + "id,text\n1,a".encode("utf-16-le") + b"b", "not UTF-16"),
        ("a.json", b' \n[{"id": 1, "text": "a"},\n{"id": 2, "text": "b"}]\n', "JSON array"),
        ("a.csv", b"id,te\rxt\n1,a\n", "names no columns"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tiny_plan: Path, tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        read(path, 2)
    assert "\n" not in str(caught.value)
    options = ["--engine", tiny_plan, "--input", path, "--output", tmp_path / "out"]
    result = CliRunner().invoke(tag_command, [str(option) for option in options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(caught.value) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_row_in_another_encoding_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n2,Zo\xeb\n3,b\n")
    assert [row.error is None for row in read(path, 2)] == [True, False, True]
