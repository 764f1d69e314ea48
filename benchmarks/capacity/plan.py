"""`amlr-bench --capacity`: from costs and traffic to a report of plain values."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amlr.benchmarks.capacity.check import check_replicas
from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.fleet import (
    CACHE_MB,
    best_utilisation,
    capacity_per_s,
    day_hits,
    load_curve,
    simulate_day,
)
from amlr.benchmarks.capacity.measure import measure_grid
from amlr.benchmarks.capacity.traffic import Traffic
from amlr.benchmarks.harness.machine import describe_machine
from amlr.errors import InputError

Say = Callable[[str], None]
_ROUNDS = 3


def plan_capacity(traffic: Traffic, costs: CostGrid) -> dict[str, Any]:
    """Simulate a day.

    Args:
        traffic: What comes, and what it may cost.
        costs: Measured on a machine like those to be rented, with all its cores busy.

    Returns:
        The plan as plain values: `hits`, `capacity_per_s`, `curve`, `utilisation`, `scaled` and
        `fixed` days, `caches`.

    Raises:
        InputError: Not even an idle server keeps the latency.
    """
    hits = _settle_hits(traffic, costs, traffic.replica.image_cache_mb)
    curve = load_curve(traffic, costs, hits)
    most = best_utilisation(curve, traffic.p99_ms / 1000)
    if not most:
        raise InputError(
            f"traffic: at {curve[0].utilisation:.0%} load p99 is {1000 * curve[0].p99_s:.0f} ms, "
            f"above p99_ms {traffic.p99_ms:g}; allow more, or take a faster tier"
        )
    utilisation = traffic.autoscaling.utilisation or most
    days = {
        name: simulate_day(traffic, curve, utilisation, fixed=name == "fixed")
        for name in ("scaled", "fixed")
    }
    return {
        "hits": hits,
        "capacity_per_s": capacity_per_s(traffic, costs, hits),
        "most_utilisation": most,
        "utilisation": utilisation,
        "curve": [asdict(load) for load in curve],
        **{name: asdict(day) for name, day in days.items()},
        "caches": [_with_cache(traffic, costs, size, utilisation) for size in CACHE_MB],
    }


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
) -> dict[str, float]:
    hits = _settle_hits(traffic, costs, cache_mb)
    capacity = capacity_per_s(traffic, costs, hits)
    per_machine = max(1, traffic.machine.cores // traffic.replica.workers)
    hourly = 3600 * capacity * utilisation * per_machine
    return {
        "cache_mb": cache_mb,
        "hits": hits,
        "capacity_per_s": capacity,
        "price_per_million": traffic.machine.price_per_hour / hourly * 1e6,
    }


def run_capacity(
    bundle: Path,
    traffic: Traffic,
    *,
    check_seconds: float = 0.0,
    engine_options: Sequence[str] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure, simulate, and compare with real servers if asked to.

    Args:
        bundle: Folder of the bundle.
        traffic: What to plan for.
        check_seconds: Length of each run against real servers; 0 runs none.
        engine_options: `--provider` and `--precision`.
        say: Told what goes on.
    """
    machine = describe_machine()
    # A rented machine has all its replicas busy; so have the cores that are measured here.
    busy = max(1, min(machine.cores or 1, traffic.machine.cores) // traffic.replica.workers)

    def grid(processes: int) -> CostGrid:
        return measure_grid(
            bundle, list(traffic.tokens), traffic.replica.batch_posts, processes, say,
            engine_options,
        )  # fmt: skip

    costs = grid(busy)
    say("simulating a day")
    report: dict[str, Any] = {
        "schema": 1,
        "machine": asdict(machine),
        "costs": costs.to_dict(),
        "traffic": asdict(traffic),
        "plan": plan_capacity(traffic, costs),
        "checks": [],
    }
    if check_seconds:
        hits = report["plan"]["hits"]
        for replicas in sorted({1, min(2, busy)}):
            measured = costs if replicas == busy else grid(replicas)
            report["checks"] += [
                check.to_dict()
                for check in check_replicas(
                    bundle,
                    traffic,
                    measured,
                    hits,
                    replicas,
                    seconds=check_seconds,
                    engine_options=engine_options,
                    say=say,
                )
            ]
    return report
