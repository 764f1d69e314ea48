"""Planning: every row in exactly one chunk, whatever the files look like."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlr.errors import InputError
from amlr.serving.archive.plan import plan_chunks
from amlr.serving.archive.rows import Columns
from amlr.serving.archive.sources import find_sources, read_piece, scan


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=6),
    st.integers(1, 20),
)
def test_every_row_is_in_exactly_one_chunk(files: list[list[int]], most: int) -> None:
    scans = [[(rows, 0) for rows in runs] for runs in files]
    chunks = list(plan_chunks(scans, most))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.rows == most for chunk in chunks[:-1])
    expected = [(file, row) for file, runs in enumerate(files) for row in range(sum(runs))]
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    rows = [(p.source, row) for p in pieces for row in range(p.start, p.stop)]
    numbers = [p.number + i for p in pieces for i in range(p.stop - p.start)]
    assert rows == expected
    assert numbers == list(range(len(expected)))
    assert list(plan_chunks(scans, most)) == chunks


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_pieces_hold_the_records_of_the_file(tmp_path: Path, kind: str, most: int) -> None:
    if kind == "jsonl":
        content = "".join(f'{{"id": {i}, "text": "t{i}"}}\n\n' for i in range(7))
    else:
        content = 'id,text\n0,t0\n1,"t1\nsecond ""line"", of it"\n\n' + "".join(
            f"{i},t{i}\n" for i in range(2, 7)
        )
    (tmp_path / f"a.{kind}").write_text(content)
    sources = find_sources((str(tmp_path),), "auto", Columns())
    chunks = list(plan_chunks((scan(source) for source in sources), most))
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    rows = [row for piece in pieces for row in read_piece(sources[0], piece, Columns())]
    assert [int(row.id) for row in rows] == list(range(7))
    assert [row.number for row in rows] == list(range(7))
    assert all(row.text.startswith(f"t{row.number}") for row in rows)
    if kind == "csv":
        assert rows[1].text == 't1\nsecond "line", of it'


def test_unusable_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    (tmp_path / "a.txt").write_text("x")
    for name, message in [
        ("a.csv", "no column 'text', only: id, body"),
        ("a.txt", "--input-format"),
        ("*.jsonl", "no input file"),
        ("absent.jsonl", "cannot read"),
    ]:
        with pytest.raises(InputError, match=message.replace("*", ".")):
            find_sources((str(tmp_path / name),), "auto", Columns())
