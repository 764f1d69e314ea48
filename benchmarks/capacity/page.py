"""The capacity plan as text and as one self-contained page."""

from html import escape

from amlr.benchmarks.capacity.check import Check
from amlr.benchmarks.capacity.plan import CapacityReport
from amlr.benchmarks.report.charts import Line, line_chart
from amlr.benchmarks.report.figures import Table, number
from amlr.benchmarks.report.page import card, grid, html_page, table_section


def render_text(report: CapacityReport) -> str:
    """The plan for a terminal or a pull request, in Markdown."""
    costs = report.costs
    parts = [f"{costs.provider} {costs.precision}; {_summary(report)}"]
    parts += [table.titled() for table in _tables(report) if table.rows]
    return "\n\n".join(parts) + "\n"


def _tables(report: CapacityReport) -> list[Table]:
    plan, currency = report.plan, report.traffic.machine.currency
    per_million = f"{currency} per million posts"
    return [
        Table(
            title="The day",
            lead="Replicas that follow the rate, beside the peak's replicas all day.",
            words=1,
            head=("replicas", "machine hours a day", f"{currency} a day", per_million,
                  "p99 ms", "refused"),
            rows=[
                (name, f"{day.machine_hours:.1f}", f"{day.price:.2f}",
                 f"{day.price_per_million:.2f}", f"{1000 * day.p99_s:.0f}", f"{day.refused:.2%}")
                for name, day in (("scaled", plan.scaled), ("fixed", plan.fixed))
            ],
        ),
        Table(
            title="Picture caches",
            lead="What other sizes would give.",
            words=1,
            head=("picture cache", "hits", "posts/s of a replica", per_million),
            rows=[
                (f"{row.cache_mb} MB", f"{row.hits:.0%}", f"{row.capacity_per_s:.1f}",
                 f"{row.price_per_million:.2f}")
                for row in plan.caches
            ],
        ),
        Table(
            title="Checked against real servers",
            lead="The same requests at the same times, simulated and sent; the error is predicted "
            "over measured.",
            words=1,
            head=("replicas", "load", "posts/s measured", "predicted", "error",
                  "p95 ms measured", "predicted", "error"),
            rows=[_check_cells(check) for check in report.checks],
        ),
    ]  # fmt: skip


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
        *map(table_section, _tables(report)),
    ]
    return html_page("Capacity plan", body)
