"""Timing loop, percentiles and rows, on doubles with known durations."""

from typing import Any

import pytest

from amlr.benchmarks.harness.rows import make_rows
from amlr.benchmarks.harness.stats import percentile, percentiles_ms
from amlr.benchmarks.harness.timing import Budget, Samples, measure
from amlr.benchmarks.harness.worker import Job
from amlr.benchmarks.systems.base import PeerSpec

MS = 1_000_000


class Runner:
    """Answers every call with one duration; fails from a given call on."""

    def __init__(self, ms: float, log: list[str], name: str, fails_at: int | None = None) -> None:
        self.ms, self.log, self.name, self.fails_at = ms, log, name, fails_at
        self.calls = 0

    def run(self, index: int) -> Samples:
        self.log.append(self.name)
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise RuntimeError("out of order")
        taken = [int(self.ms * MS)]
        return Samples(wall_ns=taken, cpu_ns=taken)


def run_two(**options: Any) -> tuple[dict[str, Samples], list[str], list[str]]:
    log: list[str] = []
    failed: list[str] = []
    slow, fast = Runner(40, log, "a"), Runner(10, log, "b", options.get("fails_at"))
    runners = {"a": slow.run, "b": fast.run}
    budget = Budget(seconds=0, min_rounds=3, max_rounds=3)
    samples = measure(
        runners, options.get("batches", 1), budget, on_failure=lambda n, e: failed.append(n)
    )
    return samples, log, failed


def test_rounds_are_interleaved_and_begin_with_another_peer_each_time() -> None:
    samples, log, _ = run_two(batches=2)
    assert log == ["a", "a", "b", "b", "b", "b", "a", "a", "a", "a", "b", "b"]
    assert {name: len(s.wall_ns) for name, s in samples.items()} == {"a": 6, "b": 6}


def test_a_failing_peer_is_left_out_and_the_others_go_on() -> None:
    samples, _, failed = run_two(fails_at=2)
    assert failed == ["b"]
    assert list(samples) == ["a"]
    assert len(samples["a"].wall_ns) == 3


def test_rounds_go_on_until_the_budget_is_spent() -> None:
    clock = iter(range(100))
    log: list[str] = []
    measure(
        {"a": Runner(1, log, "a").run},
        1,
        Budget(seconds=5, min_rounds=1, max_rounds=50),
        on_failure=lambda n, e: None,
        now=lambda: float(next(clock)),
    )
    assert len(log) == 5


@pytest.mark.parametrize(
    ("count", "p95", "p99"), [(19, False, False), (20, True, False), (100, True, True)]
)
def test_percentiles_without_enough_samples_are_unknown(count: int, p95: bool, p99: bool) -> None:
    samples = Samples(wall_ns=[MS * (i + 1) for i in range(count)], cpu_ns=[MS] * count)
    values = samples.values_ms("wall")
    assert percentile(values, 50) == pytest.approx((count + 1) / 2)
    assert (percentile(values, 95) is not None, percentile(values, 99) is not None) == (p95, p99)
    assert percentile(samples.values_ms("cpu"), 50) == 1.0
    known = {name for name, value in percentiles_ms(values.tolist()).items() if value is not None}
    assert known == {"p50_ms"} | ({"p95_ms"} if p95 else set()) | ({"p99_ms"} if p99 else set())
    assert percentile([], 50) is None


def spec(name: str, precision: str = "fp32") -> PeerSpec:
    return PeerSpec(name=name, kind="any", precision=precision)


def test_rows_give_the_engine_one_ratio_per_peer_in_its_own_precision() -> None:
    specs = {
        s.label: s
        for s in (
            spec("amlr-x"), spec("amlr-x", "bf16"), spec("research"), spec("openvino"),
            spec("openvino", "bf16"),
        )
    }  # fmt: skip
    ms = {"amlr-x/fp32": 10, "amlr-x/bf16": 5, "research/fp32": 60, "openvino/fp32": 20,
          "openvino/bf16": 12}  # fmt: skip
    samples = {n: Samples(wall_ns=[v * MS], cpu_ns=[v * MS]) for n, v in ms.items()}
    job = Job(name="cold", picture="cold", calls=(("post",) * 16,))
    rows = make_rows(job, samples, specs, 1, "wall")
    found = {(r.backend, r.precision, r.baseline): r.ratio for r in rows}
    assert found == {
        ("amlr-x", "fp32", "research"): 6.0,
        ("amlr-x", "fp32", "openvino"): 2.0,
        ("amlr-x", "bf16", "research"): 12.0,
        ("amlr-x", "bf16", "openvino"): 12 / 5,
        ("research", "fp32", "research"): 1.0,
        ("openvino", "fp32", "research"): 3.0,
        ("openvino", "bf16", "research"): 5.0,
    }
    assert rows[0].posts_per_s == pytest.approx(1600)


def test_a_row_without_its_baseline_has_no_ratio() -> None:
    samples = {"amlr-x/fp32": Samples(wall_ns=[MS], cpu_ns=[MS])}
    job = Job(name="hit", picture="hit", calls=(("post",),))
    (row,) = make_rows(job, samples, {"amlr-x/fp32": spec("amlr-x")}, 1, "wall")
    assert (row.baseline, row.ratio) == (None, None)
    assert row.p50_ms == 1.0
