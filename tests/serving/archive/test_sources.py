"""Which files are input, and what is said of those that are not."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from amlr.errors import InputError
from amlr.serving.archive.cli import tag_command
from amlr.serving.archive.plan import plan_chunks
from amlr.serving.archive.rows import Columns
from amlr.serving.archive.sources import find_sources, read_piece, scan

LINES = "".join(json.dumps({"id": i, "text": f"Jordan {i}"}) + "\n" for i in range(7))


def run(plan: Path, source: Path, out: Path, *more: str) -> tuple[int, str, str]:
    options = ["--engine", str(plan), "--provider", "onnxruntime-cpu", "--check", "off"]
    options += ["--input", str(source), "--output", str(out), "--workers", "1", *more]
    result = CliRunner().invoke(tag_command, options)
    return result.exit_code, result.stdout, result.stderr


def test_output_within_the_input_folder_is_no_input(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(LINES)
    out = tmp_path / "out"
    for more in ([], ["--resume"]):
        code, stdout, stderr = run(tiny_plan, tmp_path, out, *more)
        assert code == 0, stderr
        assert json.loads(stdout.splitlines()[-1])["rows"] == 7


def test_the_largest_unsigned_ids_are_kept_as_text(tiny_plan: Path, tmp_path: Path) -> None:
    ids = pa.array([2**64 - 1, 3], pa.uint64())
    pq.write_table(pa.table({"id": ids, "text": ["a", "b"]}), tmp_path / "in.parquet")
    code, _, stderr = run(tiny_plan, tmp_path / "in.parquet", tmp_path / "out")
    assert code == 0, stderr
    table = pq.read_table(tmp_path / "out/part-00000.parquet")
    assert table["id"].to_pylist() == [str(2**64 - 1), "3"]


def test_threads_are_the_workers(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(LINES)
    code, _, stderr = run(tiny_plan, tmp_path / "in.jsonl", tmp_path / "out", "--threads", "2")
    assert code == 2
    assert "--workers" in stderr


def test_packed_files_are_read_from_any_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (source,) = find_sources((str(tmp_path),), "auto", Columns())
    pieces = [piece for chunk in plan_chunks([scan(source)], 3) for piece in chunk.pieces]
    rows = [row for piece in pieces for row in read_piece(source, piece, Columns())]
    assert [row.id for row in rows] == list(range(7))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "cannot unpack"),
        ("a.jsonl.gz", b"no gzip at all", "cannot unpack"),
        ("a.parquet", b"no parquet", "as Parquet"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(scan(find_sources((str(tmp_path),), "auto", Columns())[0]))
    assert name in str(caught.value)


def test_a_file_may_have_the_name_of_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "posts[1].jsonl").write_text(LINES)
    (tmp_path / "posts1.jsonl").write_text(LINES)
    for text, name in [("posts[1].jsonl", "posts[1].jsonl"), ("posts?.jsonl", "posts1.jsonl")]:
        (source,) = find_sources((str(tmp_path / text),), "auto", Columns())
        assert source.address.endswith(name)
