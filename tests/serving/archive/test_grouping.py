"""Input that is sorted by picture: no part ends within a picture's rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from amlr.serving.archive.cli import tag_command
from amlr.serving.archive.plan import plan_chunks, scan_pictures
from amlr.serving.archive.rows import Columns
from amlr.serving.archive.sources import find_sources, read_piece
from drawings import saved, smooth

PICTURES = ["a", "a", "a", None, None, "b", "c", "c", "c", "c", "c", "a"]


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=4), st.integers(1, 12))
def test_runs_stay_whole_and_every_row_is_in_one_chunk(files: list[list[int]], most: int) -> None:
    scans = [[(rows, 0) for rows in runs] for runs in files]
    chunks = list(plan_chunks(scans, most, keep_runs=True))
    edges = {(f, sum(runs[:i])) for f, runs in enumerate(files) for i in range(len(runs) + 1)}
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    assert {(p.source, p.start) for p in pieces} <= edges
    assert {(p.source, p.stop) for p in pieces} <= edges
    numbers = [p.number + i for p in pieces for i in range(p.stop - p.start)]
    assert numbers == list(range(sum(map(sum, files))))
    assert all(most <= chunk.rows < most + 9 for chunk in chunks[:-1])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "bytes"])
def test_a_run_is_one_picture_and_no_longer_than_allowed(tmp_path: Path, kind: str) -> None:
    rows = [{"id": i, "text": f"t{i}", "image": name} for i, name in enumerate(PICTURES)]
    path = tmp_path / f"in.{'parquet' if kind == 'bytes' else kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        lines = [f"{row['id']},{row['text']},{row['image'] or ''}" for row in rows]
        path.write_text("\n".join(["id,text,image", *lines]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        contents = [name and name.encode() for name in PICTURES]
        table = {"text": [row["text"] for row in rows], "image_bytes": contents}
        pq.write_table(pa.table(table), path)
    (source,) = find_sources((str(path),), "auto", Columns())
    runs = list(scan_pictures(source, Columns(), 4))
    assert [length for length, _ in runs] == [3, 1, 1, 1, 4, 1, 1]
    chunks = list(plan_chunks([runs], 2, keep_runs=True))
    assert [chunk.rows for chunk in chunks] == [3, 2, 5, 2]
    texts = [
        row.text
        for chunk in chunks
        for piece in chunk.pieces
        for row in read_piece(source, piece, Columns())
    ]
    assert texts == [f"t{i}" for i in range(len(PICTURES))]


def test_each_picture_is_encoded_once_by_all_workers(tiny_plan: Path, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(saved(smooth(64 + i)))
    rows = [{"id": i, "text": f"Jordan {i}", "image": f"{i // 6}.png"} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--engine", str(tiny_plan), "--provider", "onnxruntime-cpu", "--check", "off"]
    options += ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    options += ["--image-root", str(tmp_path), "--chunk-rows", "4", "--workers", "2"]
    result = CliRunner().invoke(tag_command, [*options, "--group-by-picture"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["rows"], summary["parts"]) == (24, 4)
    assert (summary["pictures_encoded"], summary["image_used"]) == (4, 24)
    again = CliRunner().invoke(tag_command, [*options, "--resume"])
    assert "group_by_picture" in again.stderr
