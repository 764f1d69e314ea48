"""A day of many servers: replicas follow the rate, money adds up, the page shows it."""

import json
from functools import cache

import numpy as np
import pytest

from amlr.benchmarks.capacity.check import Check
from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.fleet import Load, best_utilisation, load_curve, simulate_day
from amlr.benchmarks.capacity.page import render_page, render_text
from amlr.benchmarks.capacity.plan import CapacityReport, Plan, plan_capacity
from amlr.benchmarks.capacity.traffic import Traffic
from amlr.benchmarks.report.records import MachineRecord
from amlr.errors import InputError

COSTS = CostGrid(
    tokens=(10, 50),
    batches=(1, 16),
    seconds=np.array([[[0.005, 0.04], [0.01, 0.08]], [[0.006, 0.05], [0.012, 0.1]],
                      [[0.02, 0.25], [0.025, 0.3]]]),
    request_s=0.0004,
    request_image_s=0.0002,
    picture_bytes=100_000,
)  # fmt: skip


def traffic(**changes: object) -> Traffic:
    values: dict[str, object] = {
        "rate_per_s": [50] * 12 + [900] * 12,
        "p99_ms": 250,
        "tokens": {"20": 1, "40": 1},
        "pictures": {"share": 0.5, "distinct": 50_000, "zipf": 0.9},
        "machine": {"cores": 4, "price_per_hour": 0.5},
    }
    return Traffic.parse(json.dumps(values | changes))


@cache
def usual_plan() -> Plan:
    return plan_capacity(traffic(), COSTS)


@cache
def usual_curve() -> list[Load]:
    return load_curve(traffic(), COSTS, 0.5)


def test_replicas_follow_the_rate_and_cost_less_than_the_peak() -> None:
    plan = usual_plan()
    scaled, fixed = plan.scaled, plan.fixed
    night, noon = scaled.hours[4], scaled.hours[17]
    assert night.replicas < noon.replicas
    assert scaled.machine_hours < fixed.machine_hours
    assert fixed.price == pytest.approx(0.5 * fixed.machine_hours)
    assert fixed.refused < 0.001
    assert all(hour.p99_s <= 0.25 for hour in fixed.hours)
    posts = 0.5 * 86_400 * (50 + 900)
    assert fixed.posts == pytest.approx(posts, rel=0.001)
    per_million = scaled.price / scaled.posts * 1e6
    assert scaled.price_per_million == pytest.approx(per_million)


def test_bigger_caches_never_hurt() -> None:
    caches = usual_plan().caches
    assert [row.hits for row in caches] == sorted(row.hits for row in caches)
    prices = [row.price_per_million for row in caches]
    assert prices == sorted(prices, reverse=True)


def test_slow_starts_are_seen_in_refusals() -> None:
    """A day that jumps from quiet to busy, with replicas that take an hour to start."""
    jump = traffic(rate_per_s=[10] * 23 + [1500], autoscaling={"start_s": 3600})
    curve = usual_curve()
    day = simulate_day(jump, curve, best_utilisation(curve, 0.25), fixed=False)
    at_once = simulate_day(
        traffic(rate_per_s=[10] * 23 + [1500], autoscaling={"start_s": 0}),
        curve, best_utilisation(curve, 0.25), fixed=False,
    )  # fmt: skip
    assert day.refused > 0.05 > at_once.refused


def test_latency_grows_with_load() -> None:
    curve = usual_curve()
    assert curve[0].p99_s < curve[-1].p99_s
    assert curve[0].p50_s <= curve[0].p95_s <= curve[0].p99_s


def test_an_impossible_promise_is_refused() -> None:
    with pytest.raises(InputError, match="p99_ms"):
        plan_capacity(traffic(p99_ms=4), COSTS)


def test_text_and_page_hold_the_figures() -> None:
    check = Check(
        replicas=2, utilisation=0.65, offered_per_s=80.0, predicted_per_s=80.0,
        measured_per_s=78.0, predicted_p95_ms=90.0, measured_p95_ms=100.0, refused=0.0, failed=0,
    )  # fmt: skip
    machine = MachineRecord(
        cpu="<CPU & co>", cores=4, memory_gb=None, system=None, python="3", packages={}
    )
    spec = traffic(machine={"cores": 4, "price_per_hour": 0.5, "currency": "EUR"})
    report = CapacityReport(
        machine=machine, costs=COSTS, traffic=spec, plan=usual_plan(), checks=[check]
    )
    json.dumps(report.to_dict(), allow_nan=False)
    text, page = render_text(report), render_page(report)
    assert "| 2 | 65% | 78.0 | 80.0 | +3% | 100 | 90 | -10% |" in text
    assert "EUR per million posts" in text
    assert "&lt;CPU &amp; co&gt;" in page
    assert "<CPU" not in page
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")


def test_costs_between_and_beyond_the_grid() -> None:
    assert COSTS.batch_s([10], 0, 0) == pytest.approx(0.005)
    assert COSTS.batch_s([30], 0, 0) == pytest.approx(0.0075)
    assert COSTS.batch_s([10], 0, 1) == pytest.approx(0.02)
    assert COSTS.batch_s([90], 0, 0) == pytest.approx(0.015)
