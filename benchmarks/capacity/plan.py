"""`amlr-bench --capacity`: from costs and traffic to a report."""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from amlr.benchmarks.capacity.check import Check, check_replicas
from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.fleet import (
    CACHE_MB,
    Day,
    Load,
    best_utilisation,
    capacity_per_s,
    day_hits,
    load_curve,
    simulate_day,
)
from amlr.benchmarks.capacity.measure import EngineChoice, measure_grid
from amlr.benchmarks.capacity.traffic import Traffic
from amlr.benchmarks.harness.machine import describe_machine
from amlr.benchmarks.report.records import MachineRecord
from amlr.errors import InputError

_log = logging.getLogger(__name__)
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChoice:
    """What a size of the picture cache would give: hits, capacity of a server, price."""

    cache_mb: float
    hits: float
    capacity_per_s: float
    price_per_million: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A simulated day.

    Attributes:
        hits: Share of pictures that are found in the cache.
        capacity_per_s: Posts a second of one server that never waits.
        most_utilisation: Highest load that keeps the latency.
        utilisation: Load that the autoscaler aims at.
        curve: One server's latency over its load.
        scaled: The day with replicas that follow the rate.
        fixed: The day with the peak's replicas all day.
        caches: Other sizes of the picture cache.
    """

    hits: float
    capacity_per_s: float
    most_utilisation: float
    utilisation: float
    curve: list[Load]
    scaled: Day
    fixed: Day
    caches: list[CacheChoice]


@dataclass(slots=True, kw_only=True)
class CapacityReport:
    """The plan, what it rests on, and how it compares with real servers."""

    machine: MachineRecord
    costs: CostGrid
    traffic: Traffic
    plan: Plan
    checks: list[Check] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": 1,
            "machine": asdict(self.machine),
            "costs": asdict(self.costs) | {"seconds": self.costs.seconds.tolist()},
            "traffic": self.traffic.model_dump(),
            "plan": asdict(self.plan),
            "checks": [check.to_dict() for check in self.checks],
        }


def plan_capacity(traffic: Traffic, costs: CostGrid) -> Plan:
    """Simulate a day.

    Raises:
        InputError: Not even an idle server keeps the latency.
    """
    hits = _settle_hits(traffic, costs, traffic.replica.image_cache_mb)
    curve = load_curve(traffic, costs, hits)
    most = best_utilisation(curve, traffic.p99_ms / 1000)
    if not most:
        raise InputError(
            f"traffic: at {curve[0].utilisation:.0%} load p99 is {1000 * curve[0].p99_s:.0f} ms "
            f"and {curve[0].refused:.1%} of the posts are refused as late; expected p99_ms "
            f"{traffic.p99_ms:g} and next to no refusals; raise p99_ms, or take a faster tier"
        )
    utilisation = traffic.autoscaling.utilisation or most
    return Plan(
        hits=hits,
        capacity_per_s=capacity_per_s(traffic, costs, hits),
        most_utilisation=most,
        utilisation=utilisation,
        curve=curve,
        scaled=simulate_day(traffic, curve, utilisation, fixed=False),
        fixed=simulate_day(traffic, curve, utilisation, fixed=True),
        caches=[_with_cache(traffic, costs, size, utilisation) for size in CACHE_MB],
    )


def _settle_hits(traffic: Traffic, costs: CostGrid, cache_mb: float) -> float:
    """Hits decide how many replicas there are, and these how often a picture meets its cache."""
    hits = 0.0
    for _ in range(_ROUNDS):
        capacity = capacity_per_s(traffic, costs, hits)
        replicas = max(1.0, sum(traffic.rate_per_s) / len(traffic.rate_per_s) / capacity)
        hits = day_hits(traffic, costs.picture_bytes, cache_mb, replicas)
    return hits


def _with_cache(
    traffic: Traffic, costs: CostGrid, cache_mb: float, utilisation: float
) -> CacheChoice:
    hits = _settle_hits(traffic, costs, cache_mb)
    capacity = capacity_per_s(traffic, costs, hits)
    per_machine = max(1, traffic.machine.cores // traffic.replica.workers)
    hourly = 3600 * capacity * utilisation * per_machine
    return CacheChoice(
        cache_mb=cache_mb,
        hits=hits,
        capacity_per_s=capacity,
        price_per_million=traffic.machine.price_per_hour / hourly * 1e6,
    )


def run_capacity(
    engine: EngineChoice, traffic: Traffic, check_seconds: float = 0.0
) -> CapacityReport:
    """Measure, simulate, and compare with real servers if asked to.

    Args:
        engine: What to measure and serve.
        traffic: What to plan for.
        check_seconds: Length of each run against real servers; 0 leaves them out.
    """
    machine = describe_machine()
    # A rented machine has all its replicas busy; so have the cores that are measured here.
    busy = max(1, min(machine.cores or 1, traffic.machine.cores) // traffic.replica.workers)

    def grid(processes: int) -> CostGrid:
        return measure_grid(engine, list(traffic.tokens), traffic.replica.batch_posts, processes)

    costs = grid(busy)
    _log.info("simulating a day")
    plan = plan_capacity(traffic, costs)
    report = CapacityReport(machine=machine, costs=costs, traffic=traffic, plan=plan)
    for replicas in sorted({1, min(2, busy)}) if check_seconds else ():
        measured = costs if replicas == busy else grid(replicas)
        report.checks += check_replicas(
            engine, traffic, measured, plan.hits, replicas, check_seconds
        )
    return report
