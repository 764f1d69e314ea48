"""Tables and the picture of a GPU run, from the rows that are committed with the measurements."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from amlr.benchmarks.gpu.report import draw, markdown, speed, speed_tables
from amlr.benchmarks.gpu.run import Row, read_rows

MEASUREMENTS = Path(__file__).resolve().parents[2] / "docs" / "measurements"
ROWS = read_rows(MEASUREMENTS / "gpu" / "full.jsonl")


def _lines(rows: list[Row]) -> list[str]:
    return "\n".join(speed_tables(rows)).splitlines()


def test_rows_of_a_step_share_a_table_and_columns_may_be_blank() -> None:
    rows = [
        {"step": "s", "kind": "row", "what": "one", "ms": 1.5},
        {"step": "s", "kind": "row", "what": "two", "ms": 2.5, "failed": "x", "error": None},
        {"step": "s", "kind": "row", "note": "of another kind"},
        {"step": "s", "kind": "row", "what": "three", "not_run": "a | b"},
    ]
    lines = markdown(rows).splitlines()
    assert lines[lines.index("## s") + 2 :] == [
        "| what | ms | error | not_run |",
        "|---|---|---|---|",
        "| one | 1.5 |  |  |",
        "| two | 2.5 |  |  |",
        "| three |  |  | a / b |",
        "",
        "| note |",
        "|---|",
        "| of another kind |",
    ]


def test_no_row_of_the_measured_run_is_lost() -> None:
    page = markdown(ROWS)
    for step in {row["step"] for row in ROWS if row["kind"] == "row"}:
        section = page.split(f"\n## {step}\n")[1].split("\n## ")[0]
        tables = section.count("|---|\n")
        lines = sum(line.startswith("|") for line in section.splitlines())
        assert lines - 2 * tables == sum(r["step"] == step and r["kind"] == "row" for r in ROWS)
        assert tables <= 3, step


@pytest.mark.parametrize(("run", "lines"), [("full", 37), ("second", 19)])
def test_the_written_tables_are_those_of_the_committed_rows(run: str, lines: int) -> None:
    rows = read_rows(MEASUREMENTS / "gpu" / f"{run}.jsonl")
    written = (MEASUREMENTS / "gpu.md").read_text(encoding="utf-8").splitlines()
    tables = [line for line in _lines(rows) if line.startswith("|")]
    assert len(tables) == lines
    missing = [line for line in tables if line not in written]
    assert not missing


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], ROWS[:130]])
def test_the_picture_has_a_line_for_every_drawn_system(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    draw(rows, path)
    texts = [element.text for element in ET.parse(path).iter() if element.tag.endswith("}text")]
    for system in speed(rows)["text+fusion"]:
        is_drawn = not system.endswith(("bound", "compile reduce-overhead"))
        assert (system in texts) == is_drawn, system
    again = tmp_path / "again.svg"
    draw(rows, again)
    assert again.read_bytes() == path.read_bytes()


def test_unknown_and_missing_times() -> None:
    row: Row = {
        "step": "s",
        "kind": "row",
        "what": "image",
        "variant": "fp16-cuda",
        "mode": "engine",
    }
    rows = [row | {"batch": 1, "device_ms": "", "host_ms": 2.0}]
    rows.append(row | {"batch": 8, "device_ms": 1.0, "host_ms": 3.0, "mode": "plain"})
    assert _lines(rows)[-2:] == [
        "| fp16 engine | - / 2.00 |  |",
        "| fp16 plain |  | 1.00 / 3.00 |",
    ]


def test_nothing_timed_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was timed"):
        draw([row for row in ROWS if row["step"] == "ceilings"], tmp_path / "speed.svg")
    command = [sys.executable, "-m", "amlr.benchmarks.gpu.report", str(tmp_path / "none.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "no results at" in run.stderr
