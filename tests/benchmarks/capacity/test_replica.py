"""The simulated server against cases that can be computed by hand, and against queueing theory."""

import numpy as np
import pytest

from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.replica import Arrivals, simulate
from amlr.benchmarks.capacity.traffic import Replica

ALONE = Replica(batch_posts=1, wait_ms=0)


def flat_costs(seconds: float = 0.01, request_s: float = 0.0) -> CostGrid:
    """A batch costs as much as its posts one by one; a new picture doubles that."""
    batch = np.array([1.0, 16.0]) * seconds
    grid = np.array([[batch, batch], [batch, batch], [2 * batch, 2 * batch]])
    return CostGrid(
        tokens=(10, 50), batches=(1, 16), seconds=grid, request_s=request_s, request_image_s=0.0,
        picture_bytes=1000,
    )  # fmt: skip


def arrivals(*at_s: float, state: int = 0) -> Arrivals:
    count = len(at_s)
    return Arrivals(
        at_s=np.array(at_s), tokens=np.full(count, 20), state=np.full(count, state, np.int64)
    )


def test_a_lone_post_pays_for_itself() -> None:
    latency_s = simulate(arrivals(1.0), flat_costs(request_s=0.002), ALONE)
    assert latency_s == pytest.approx([0.012])


def test_posts_queue_behind_each_other() -> None:
    latency_s = simulate(arrivals(0.0, 0.0, 0.0), flat_costs(), ALONE)
    assert latency_s == pytest.approx([0.01, 0.02, 0.03])


def test_two_workers_share_the_queue() -> None:
    replica = Replica(batch_posts=1, wait_ms=0, workers=2)
    latency_s = simulate(arrivals(0.0, 0.0, 0.0, 0.0), flat_costs(), replica)
    assert latency_s == pytest.approx([0.01, 0.01, 0.02, 0.02])


def test_waiting_posts_make_one_batch() -> None:
    latency_s = simulate(arrivals(0.0, 0.001, 0.002), flat_costs(), Replica(wait_ms=0))
    # The second and third wait for the first, then go together.
    assert latency_s == pytest.approx([0.01, 0.029, 0.028])


def test_new_pictures_cost_more() -> None:
    assert simulate(arrivals(0.0, state=2), flat_costs(), ALONE) == pytest.approx([0.02])


def test_refuses_what_would_be_late() -> None:
    latency_s = simulate(arrivals(*np.zeros(20)), flat_costs(), ALONE, deadline_s=0.1)
    answered = latency_s[~np.isnan(latency_s)]
    assert 0 < len(answered) < 20
    assert answered.max() <= 0.1


def test_requests_during_a_batch_delay_it() -> None:
    latency_s = simulate(arrivals(0.0, 0.005), flat_costs(request_s=0.001), ALONE)
    # 1 ms for its own request, 10 ms of work, 1 ms for the other's request.
    assert latency_s[0] == pytest.approx(0.012)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_by_one_it_is_an_m_d_1_queue(load: float) -> None:
    """Mean wait of M/D/1 is load / (2 (1 - load)) service times (Pollaczek and Khinchine)."""
    generator = np.random.default_rng(5)
    at = np.cumsum(generator.exponential(0.01 / load, 40_000))
    latency_s = simulate(arrivals(*at), flat_costs(), ALONE)
    expected = 0.01 * (1 + load / (2 * (1 - load)))
    assert latency_s.mean() == pytest.approx(expected, rel=0.06)


def test_nothing_to_do() -> None:
    latency_s = simulate(arrivals(), flat_costs(), ALONE)
    assert len(latency_s) == 0


def test_a_worker_waits_for_company_only_while_posts_come_fast() -> None:
    """Posts a millisecond apart wait out the 5 ms together; a lone post after a pause does not."""
    fast = np.arange(60) * 0.001
    latency_s = simulate(arrivals(*fast, 30.0), flat_costs(0.0001), Replica(wait_ms=5))
    assert latency_s[-1] == pytest.approx(0.0001)
    assert latency_s[40:59].max() == pytest.approx(0.005 + 0.0006, abs=0.0005)
