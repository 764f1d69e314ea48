"""Runs that must end: deadlines, what is left out first, peers that take too long."""

from pathlib import Path

import pytest

from amlr.benchmarks.data import load_data
from amlr.benchmarks.harness.timing import Budget, Deadline, Samples, measure
from amlr.benchmarks.harness.worker import Worker
from amlr.benchmarks.harness.workloads import make_pool, plan
from amlr.benchmarks.process import Remote, RemoteError, worker_environment
from amlr.benchmarks.systems.base import PeerSpec
from amlr.runtime.bundle import Bundle


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_deadline_is_never_negative() -> None:
    clock = Clock()
    deadline = Deadline(40, now=clock)
    clock.seconds += 10
    assert (deadline.left, deadline.is_over) == (30, False)
    clock.seconds += 29
    assert deadline.is_over
    clock.seconds += 29
    assert deadline.left == 0


def test_a_limited_budget_has_few_rounds_and_one_in_any_case() -> None:
    budget = Budget(seconds=99, min_rounds=10)
    assert budget.within(7.0) == Budget(seconds=7, min_rounds=2)
    assert budget.within(-1.0) == Budget(seconds=0, min_rounds=1)
    deadline = Deadline(None)
    assert not deadline.is_set
    assert not deadline.is_over
    assert deadline.left == float("inf")


def test_no_round_begins_that_would_end_too_late() -> None:
    clock, runs = Clock(), []

    class Slow:
        def run(self, index: int) -> Samples:
            runs.append(index)
            clock.seconds += 4
            return Samples(wall_ns=[4], cpu_ns=[4])

    measure(
        {"a": Slow().run}, 1, Budget(seconds=10, min_rounds=1),
        on_failure=lambda label, error: None, now=clock,
    )  # fmt: skip
    assert len(runs) == 2


def test_single_posts_come_last(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    pool = make_pool(load_data("sample", None, None, 24).posts, bundle, 16)
    found = plan(pool, ("cold", "block"), quick=False)
    assert [(w.name, w.batch) for w in found] == [
        ("cold", 16), ("block", 16), ("cold", 1), ("block", 1),
    ]  # fmt: skip


def test_a_peer_that_takes_too_long_is_ended(tiny_plan: Path) -> None:
    spec = PeerSpec(name="research", kind="research")
    peer = Remote(Worker, worker_environment(1))
    with pytest.raises(RemoteError, match="no answer within 0 s"):
        peer.call("start", spec, tiny_plan, 1, Path(), seconds=0)
    peer.close()
    with pytest.raises(RemoteError, match="ended with code"):
        peer.call("memory")
