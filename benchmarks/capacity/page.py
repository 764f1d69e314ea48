"""The capacity plan as text and as one self-contained page."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from amlr.benchmarks.capacity.check import Check
from amlr.benchmarks.capacity.plan import CapacityReport
from amlr.benchmarks.report.charts import Line, line_chart
from amlr.benchmarks.report.figures import markdown_table, number
from amlr.benchmarks.report.page import card, grid, html_page, html_table, section


class _Table(NamedTuple):
    """A table of the text and of the page.

    Attributes:
        title: Heading.
        lead: A sentence below it.
        head: Column names.
        rows: Cells.
    """

    title: str
    lead: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_text(report: CapacityReport) -> str:
    """The plan for a terminal or a pull request, in Markdown."""
    costs = report.costs
    parts = [f"{costs.provider} {costs.precision}; {_summary(report)}"]
    parts += [markdown_table(table.head, table.rows, words=1) for table in _tables(report)]
    return "\n\n".join(parts) + "\n"


def _tables(report: CapacityReport) -> list[_Table]:
    plan, currency = report.plan, report.traffic.machine.currency
    per_million = f"{currency} per million posts"
    tables = [
        _Table(
            "The day",
            "Replicas that follow the rate, beside the peak's replicas all day.",
            ("replicas", "machine hours a day", f"{currency} a day", per_million, "p99 ms",
             "refused"),
            [
                (name, f"{day.machine_hours:.1f}", f"{day.price:.2f}",
                 f"{day.price_per_million:.2f}", f"{1000 * day.p99_s:.0f}", f"{day.refused:.2%}")
                for name, day in (("scaled", plan.scaled), ("fixed", plan.fixed))
            ],
        ),
        _Table(
            "Picture caches",
            "What other sizes would give.",
            ("picture cache", "hits", "posts/s of a replica", per_million),
            [
                (f"{row.cache_mb} MB", f"{row.hits:.0%}", f"{row.capacity_per_s:.1f}",
                 f"{row.price_per_million:.2f}")
                for row in plan.caches
            ],
        ),
    ]  # fmt: skip
    if report.checks:
        tables.append(
            _Table(
                "Checked against real servers",
                "The same requests at the same times, simulated and sent; the error is predicted "
                "over measured.",
                ("replicas", "load", "posts/s measured", "predicted", "error", "p95 ms measured",
                 "predicted", "error"),
                [_check_cells(check) for check in report.checks],
            )
        )  # fmt: skip
    return tables


def _summary(report: CapacityReport) -> str:
    plan, traffic = report.plan, report.traffic
    most = max(hour.replicas for hour in plan.scaled.hours)
    machines = max(hour.machines for hour in plan.scaled.hours)
    return (
        f"one replica answers {plan.capacity_per_s:.1f} posts/s at {plan.hits:.0%} known "
        f"pictures, and keeps p99 within {traffic.p99_ms:g} ms up to "
        f"{plan.most_utilisation:.0%} of that; the day needs up to {most} replicas on "
        f"{machines} machines"
    )


def _check_cells(check: Check) -> list[str]:
    return [
        str(check.replicas),
        f"{check.utilisation:.0%}",
        f"{check.measured_per_s:.1f}",
        f"{check.predicted_per_s:.1f}",
        f"{check.throughput_error:+.0%}",
        number(check.measured_p95_ms),
        number(check.predicted_p95_ms),
        "–" if check.p95_error is None else f"{check.p95_error:+.0%}",
    ]


def render_page(report: CapacityReport) -> str:
    """The plan as HTML: inline style and SVG, nothing to fetch."""
    plan, costs = report.plan, report.costs
    hours, curve = plan.scaled.hours, plan.curve
    places = [str(hour) if hour % 3 == 0 else "" for hour in range(24)]
    charts = {
        "Posts a second over the day": line_chart(
            [Line(label="offered", values=[h.rate_per_s for h in hours], is_own=True)],
            places, "hour", "posts/s",
        ),
        "Replicas over the day": line_chart(
            [
                Line(label="scaled", values=[h.replicas for h in hours], is_own=True),
                Line(label="fixed", values=[h.replicas for h in plan.fixed.hours]),
            ],
            places, "hour", "replicas",
        ),
        "Latency of one replica over its load": line_chart(
            [
                Line(label="p99", values=[1000 * load.p99_s for load in curve], is_own=True),
                Line(label="p95", values=[1000 * load.p95_s for load in curve]),
                Line(label="p50", values=[1000 * load.p50_s for load in curve]),
                Line(label="p99 allowed", values=[report.traffic.p99_ms for _ in curve]),
            ],
            [f"{load.utilisation:.0%}" for load in curve], "share of capacity", "ms",
        ),
    }  # fmt: skip
    body = [
        "<h1>How many machines does this traffic need?</h1>",
        f'<p class="soft">Costs measured on {escape(str(report.machine.cpu))}, '
        f"{escape(costs.provider)} {escape(costs.precision)}, all cores busy.</p>",
        f'<div class="verdict pass">{escape(_summary(report)).capitalize()}.</div>',
        grid([card(title, chart) for title, chart in charts.items()]),
        *(
            section(t.title, t.lead, html_table(t.head, t.rows, numeric=range(1, len(t.head))))
            for t in _tables(report)
        ),
    ]
    return html_page("Capacity plan", body)
