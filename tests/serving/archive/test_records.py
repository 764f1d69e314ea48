"""Records of CSV files: those that Python's own reader finds, each at its own byte."""

import csv
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amlr.serving.archive.plan import plan_chunks
from amlr.serving.archive.rows import Columns, Row
from amlr.serving.archive.sources import find_sources, read_piece, scan

Field = st.text(st.sampled_from(['"', ",", "\n", "a", " ", "é", "\t", "😀"]), max_size=6)


def read(path: Path, most: int) -> list[Row]:
    (source,) = find_sources((str(path),), "auto", Columns())
    pieces = [piece for chunk in plan_chunks([scan(source)], most) for piece in chunk.pieces]
    return [row for piece in pieces for row in read_piece(source, piece, Columns())]


@given(st.lists(st.tuples(Field, Field), max_size=8), st.integers(1, 3), st.sampled_from(",\t"))
@example([("1", 'say "'), ("2", '"\n\n"'), ("3", "")], 1, ",")
def test_written_fields_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    fields: list[tuple[str, str]],
    most: int,
    delimiter: str,
) -> None:
    path = tmp_path_factory.mktemp("csv") / ("a.csv" if delimiter == "," else "a.tsv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerows([("id", "text"), *fields])
    found = read(path, most)
    assert [(row.id, row.text) for row in found] == fields
    assert [row.number for row in found] == list(range(len(fields)))


@pytest.mark.parametrize("most", [1, 2, 50])
def test_a_stray_quote_takes_no_other_row_with_it(tmp_path: Path, most: int) -> None:
    path = tmp_path / "a.csv"
    rows = [b'0,5" tall', b"1,b", b'2,6" and 7"', b"3,\xff", b'4,"x ""y"" z"', b"5,c,more", b"6,d"]
    path.write_bytes(b"\r\n".join([b"\xef\xbb\xbfid,text", *rows, b'7,"never closed', b"8,e", b""]))
    found = read(path, most)
    assert [row.number for row in found] == list(range(8))
    assert [row.error is not None for row in found] == [False] * 3 + [True, False, True] + [
        False
    ] * 2
    assert [row.text for row in found[:3]] == ['5" tall', "b", '6" and 7"']
    assert found[4].text == 'x "y" z'
    assert found[6].text == "d"
    assert found[7].text == "never closed\r\n8,e\r\n"


def test_a_carriage_return_within_a_field_spoils_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n0,a\rb\n1,c\n")
    found = read(path, 1)
    assert [row.error is not None for row in found] == [True, False]
    assert found[1].text == "c"
