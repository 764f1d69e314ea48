"""Runs that must end: deadlines, what is left out first, peers that take too long."""

from pathlib import Path

import pytest

from amlr.benchmarks.data import load_data
from amlr.benchmarks.harness.jobs import Samples
from amlr.benchmarks.harness.peers import PeerError, RemotePeer
from amlr.benchmarks.harness.timing import Budget, Deadline, measure
from amlr.benchmarks.harness.workloads import make_pool, plan
from amlr.benchmarks.systems.base import PeerSpec
from amlr.runtime.bundle import Bundle


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_deadline_is_shared_by_weight_and_never_negative() -> None:
    clock = Clock()
    deadline = Deadline(40, now=clock)
    clock.seconds += 10
    budget, seconds = deadline.share(Budget(seconds=99, min_rounds=10), 1.0, 3.0)
    assert (budget.seconds, budget.min_rounds, seconds) == (10, 2, 10)
    assert not deadline.is_over
    clock.seconds += 29
    assert deadline.is_over
    clock.seconds += 29
    assert deadline.left == 0


def test_without_a_deadline_budgets_stay_as_they_are() -> None:
    budget = Budget(seconds=5, min_rounds=3)
    deadline = Deadline(None)
    assert not deadline.is_set
    assert not deadline.is_over
    assert deadline.share(budget, 1.0, 9.0) == (budget, float("inf"))


def test_no_round_begins_that_would_end_too_late() -> None:
    clock, runs = Clock(), []

    class Slow:
        def run(self, index: int) -> Samples:
            runs.append(index)
            clock.seconds += 4
            return Samples(wall_ns=[4], cpu_ns=[4])

    measure(
        {"a": Slow()}, 1, Budget(seconds=10, min_rounds=1),
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
    peer = RemotePeer(PeerSpec(name="research", kind="research"), bundle=str(tiny_plan), threads=1)
    with pytest.raises(PeerError, match="no answer within 0 s"):
        peer.wait(0)
    peer.close()
    with pytest.raises(PeerError, match="ended with code"):
        peer.memory_mib()
