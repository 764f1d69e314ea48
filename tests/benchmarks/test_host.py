"""The host's own cost: stages that add up, states of the caches, the report's table."""

import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.benchmarks import host
from amlr.benchmarks.cli import bench_command
from amlr.benchmarks.data import generated_posts
from amlr.benchmarks.report.schema import read_report
from amlr.runtime import pipeline
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few posts, so that a round takes a moment."""
    monkeypatch.setattr(host, "_POSTS", 6)
    monkeypatch.setattr(host, "_PICTURES", 6)
    monkeypatch.setattr(host, "CALLS", (1, 4))


@pytest.mark.usefixtures("small")
def test_rows_of_every_kind_state_and_size(tiny_plan: Path) -> None:
    before = (pipeline.score_texts, Decoder.entities, Engine.tag_batch)
    rows = host.measure_host(tiny_plan, generated_posts(6), quick=True)
    assert before == (pipeline.score_texts, Decoder.entities, Engine.tag_batch)
    states = {"text": 3, "known picture": 3, "new picture": 1}
    places = [(row.kind, row.batch, row.state) for row in rows]
    assert len(set(places)) == len(rows) == sum(2 * count for count in states.values())
    by_place = dict(zip(places, rows, strict=True))
    for row in rows:
        assert row.us_per_post == pytest.approx(sum(row.stages_us.values()), abs=1)
        assert (row.certificate_us is not None) == (row.state == "repeated")
        assert row.kind == "text" or row.stages_us["pictures"] > 0
        assert row.stages_us["decode"] > 0
        assert row.stages_us["batch"] > 0
    # What the caches know is not read again.
    for batch in (1, 4):
        cold, again = by_place["text", batch, "cold"], by_place["text", batch, "repeated"]
        assert again.stages_us.get("words", 0.0) < cold.stages_us["words"]
        new = by_place["new picture", batch, "warm"].stages_us["pictures"]
        assert by_place["known picture", batch, "warm"].stages_us["pictures"] < new


def test_an_inner_stage_does_not_count_for_the_outer_one() -> None:
    clock = host.StageClock()

    def burn(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    inner = clock.timed("inner", burn)

    def work() -> None:
        burn(0.01)
        inner(0.04)
        inner(0.04)

    clock.timed("outer", work)()
    assert 0.08 <= clock.ns["inner"] / 1e9 < 0.1
    assert 0.01 <= clock.ns["outer"] / 1e9 < 0.03


def test_an_error_leaves_the_clock_usable() -> None:
    clock = host.StageClock()

    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        clock.timed("failing", fail)()
    clock.timed("next", lambda: None)()
    assert set(clock.ns) == {"failing", "next"}


@pytest.mark.usefixtures("small")
def test_the_command_writes_the_table(tiny_plan: Path, tmp_path: Path) -> None:
    arguments: list[Any] = [
        "--engine", tiny_plan, "--workloads", "host", "--provider", "onnxruntime", "--limit", 6,
        "--budget", 100, "--json", tmp_path / "b.json", "--html", tmp_path / "b.html",
    ]  # fmt: skip
    result = CliRunner().invoke(bench_command, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "b.json")
    assert report.rows == []
    assert report.peers == []
    assert {row.kind for row in report.host} == {"text", "known picture", "new picture"}
    assert "| known picture | repeated | 4 |" in result.output
    assert "What the host costs" in (tmp_path / "b.html").read_text("utf-8")
