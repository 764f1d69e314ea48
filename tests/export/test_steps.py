"""Steps of an export say where it is, and estimate the rest from the posts so far."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from amlr.export import steps
from amlr.export.ladder.ladder import steps_of_cpu_variants
from amlr.export.posts import read_posts
from amlr.export.steps import Step, counted, run_steps
from amlr.runtime.bundle import Bundle
from log_lines import log_lines
from tiny_ladder import small_ladder, write_posts


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def answer(self, posts: int, seconds: float) -> None:
        """Pass that many posts through `counted`, each after some seconds."""

        def answers() -> Iterator[int]:
            for number in range(posts):
                self.wait(seconds)
                yield number

        assert list(counted(answers())) == list(range(posts))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def example(clock: Clock, unknown: int | None) -> list[Step]:
    return [
        # No posts: however long it takes, it says nothing about the rest.
        Step(label="exporting", run=lambda: clock.wait(500)),
        Step(label="verifying", run=lambda: clock.answer(100, 0.5), posts=100),
        Step(label="measuring", run=lambda: clock.answer(400, 0.1), posts=400),
        Step(label="left out", run=lambda: None, posts=100),
        Step(label="compiling", run=lambda: clock.wait(5), posts=unknown),
    ]


def test_steps_are_announced_with_what_remains(clock: Clock) -> None:
    with log_lines() as lines:
        run_steps(example(clock, unknown=0))
    assert lines == [
        "step 1 of 5: exporting",
        "step 2 of 5: verifying",
        # 60 posts took 30 s, 540 are to come.
        "  step 2 of 5: 60/100 posts (60 %), about 4 min left",
        "step 3 of 5: measuring, about 4 min left",
        # 400 posts of two steps took 80 s, 200 are to come.
        "  step 3 of 5: 300/400 posts (75 %), about 40 s left",
        # 400 posts of the last step took 40 s.
        "step 4 of 5: left out, about 10 s left",
        "step 5 of 5: compiling",
    ]


def test_an_unknown_step_makes_it_a_lower_bound(clock: Clock) -> None:
    with log_lines() as lines:
        run_steps(example(clock, unknown=None))
    assert "step 3 of 5: measuring, at least 4 min left" in lines
    assert not any("about" in line for line in lines)


def test_a_terminal_gets_one_line_that_is_redrawn_and_taken_away(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with log_lines() as lines:
        run_steps(example(clock, unknown=0))
    assert not any("posts (" in line for line in lines)
    drawn = screen.getvalue().split("\r\x1b[K")
    assert drawn[1] == "  step 2 of 5: 1/100 posts (1 %)"
    assert "  step 2 of 5: 60/100 posts (60 %), about 4 min left" in drawn
    assert drawn[-1] == ""

    quiet = Terminal()
    monkeypatch.setattr(sys, "stderr", quiet)
    logging.getLogger("amlr.export").setLevel(logging.ERROR)
    try:
        run_steps(example(clock, unknown=0))
    finally:
        logging.getLogger("amlr.export").setLevel(logging.NOTSET)
    assert quiet.getvalue() == ""


def test_answers_count_only_while_steps_run(clock: Clock) -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_steps([Step(label="failing", run=fail)])
    with log_lines() as lines:
        clock.answer(100, 10.0)
    assert lines == []


def test_other_work_is_shown_and_says_nothing_about_posts(clock: Clock) -> None:
    def try_products() -> None:
        for _ in counted(range(4), "of 4 products"):
            clock.wait(20)

    steps = [
        Step(label="verifying", run=lambda: clock.answer(100, 0.1), posts=100),
        Step(label="calibrating", run=try_products, posts=None),
        Step(label="measuring", run=lambda: clock.answer(400, 0.05), posts=400),
    ]
    with log_lines() as lines:
        run_steps(steps)
    assert lines[1:] == [
        "step 2 of 3: calibrating, at least 40 s left",
        "  step 2 of 3: 2 of 4 products, at least 40 s left",
        "  step 2 of 3: 4 of 4 products, at least 40 s left",
        "step 3 of 3: measuring, about 40 s left",
    ]


def test_each_step_counts_as_many_posts_as_it_says(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    bundle = small_ladder(tiny_plan, tmp_path / "plan")
    posts = read_posts(write_posts(tmp_path, images=3, count=40))
    monkeypatch.setattr(steps, "_LOG_EVERY_S", 0.0)
    with log_lines() as lines:
        run_steps(steps_of_cpu_variants(bundle, ("fp32", "bf16"), posts))
    for number, label in enumerate(("float32 on 40", "bf16 on 40", "float32 without"), start=1):
        begun = next(row for row, line in enumerate(lines) if label in line)
        assert lines[begun].startswith(f"step {number} of 3: measuring")
        counts = [line for line in lines if line.startswith(f"  step {number} of 3: ")]
        assert "(100 %)" in counts[-1]
        assert len(counts) == int(counts[-1].partition("/")[2].split()[0])
    assert "bf16" in Bundle.open(bundle.folder).manifest.variants
