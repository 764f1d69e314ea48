"""A row at which every process dies: the run ends, and only that row pays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

# Loaded by every process of the run; opening this picture kills the process outright.
SITE = """
import os, signal
import fsspec
from fsspec.implementations.memory import MemoryFileSystem

class Deadly(MemoryFileSystem):
    protocol = "deadly"

    def _open(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

fsspec.register_implementation("deadly", Deadly)
"""


@pytest.mark.slow
def test_the_row_that_kills_every_process_is_the_only_one_not_tagged(
    tiny_plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    rows = [{"id": i, "text": f"Jordan {i} in Paris"} for i in range(12)]
    rows[7]["image"] = "deadly://picture"
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-c", "from amlr.serving.archive.cli import tag_main; tag_main()"]
    command += ["--engine", str(tiny_plan), "--provider", "onnxruntime-cpu", "--check", "off"]
    command += ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    inherited = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [*command, "--chunk-rows", "10", "--workers", "1"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{inherited}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["failed"], summary["retried_parts"]) == (12, 1, 1)
    found = [row for p in sorted((tmp_path / "out").glob("part-*")) for row in read(p)]
    assert [row["id"] for row in found] == [str(i) for i in range(12)]
    assert [row["row"] for row in found if row["error"]] == [7]
    assert found[7]["error"]["code"] == "worker_died"
    assert all(row["entities"] for row in found if not row["error"])


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
