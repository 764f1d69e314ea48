"""The capacity plan as text and as one self-contained page."""

from collections.abc import Iterator, Sequence
from html import escape

from amlr.benchmarks.capacity.check import Check
from amlr.benchmarks.capacity.fleet import Hour
from amlr.benchmarks.capacity.plan import CapacityReport
from amlr.benchmarks.report.charts import Bar, Line, bar_chart, line_chart
from amlr.benchmarks.report.figures import markdown_table, number
from amlr.benchmarks.report.page import card, grid, html_page, html_table, section, tiles

_CHECK_HEAD = ("replicas", "load", "posts/s measured", "predicted", "error", "p95 ms measured",
               "predicted", "error")  # fmt: skip


def render_text(report: CapacityReport) -> str:
    """The plan for a terminal or a pull request, in Markdown."""
    return "\n".join(_text(report)) + "\n"


def _text(report: CapacityReport) -> Iterator[str]:
    plan, traffic, costs = report.plan, report.traffic, report.costs
    currency = traffic.machine.currency
    yield f"{costs.provider} {costs.precision}; {_summary(report)}"
    yield ""
    per_million = f"{currency} per million posts"
    days = (
        (name, f"{day.machine_hours:.1f}", f"{day.price:.2f}", f"{day.price_per_million:.2f}",
         f"{1000 * day.p99_s:.0f}", f"{day.refused:.2%}")
        for name, day in (("scaled", plan.scaled), ("fixed", plan.fixed))
    )  # fmt: skip
    head = ("", "machine hours a day", f"{currency} a day", per_million, "p99 ms", "refused")
    yield markdown_table(head, days, words=1)
    yield ""
    caches = (
        (f"{row.cache_mb} MB", f"{row.hits:.0%}", f"{row.capacity_per_s:.1f}",
         f"{row.price_per_million:.2f}")
        for row in plan.caches
    )  # fmt: skip
    names = ("picture cache", "hits", "posts/s of a replica", per_million)
    yield markdown_table(names, caches, words=0)
    if report.checks:
        yield ""
        yield markdown_table(_CHECK_HEAD, map(_check_cells, report.checks), words=0)


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
    plan, machine = report.plan, report.machine
    hours = plan.scaled.hours
    places = [str(hour) if hour % 3 == 0 else "" for hour in range(24)]
    curve = plan.curve
    loads = [f"{load.utilisation:.0%}" for load in curve]
    target = report.traffic.p99_ms
    cards = [
        card(
            "Posts a second over the day",
            line_chart(
                [Line(label="offered", values=[h.rate_per_s for h in hours], is_own=True)],
                places, "hour", "posts/s",
            ),
        ),
        card(
            "Replicas over the day",
            line_chart(
                [
                    Line(label="scaled", values=[h.replicas for h in hours], is_own=True),
                    Line(label="fixed", values=[h.replicas for h in plan.fixed.hours]),
                ],
                places, "hour", "replicas",
            ),
        ),
        card(
            "Latency of one replica over its load",
            line_chart(
                [
                    Line(label="p99", values=[1000 * c.p99_s for c in curve], is_own=True),
                    Line(label="p95", values=[1000 * c.p95_s for c in curve]),
                    Line(label="p50", values=[1000 * c.p50_s for c in curve]),
                    Line(label="p99 allowed", values=[target for _ in curve]),
                ],
                loads, "share of capacity", "ms",
            ),
        ),
        card(
            "Posts a second of one replica over its picture cache",
            bar_chart(
                [
                    Bar(
                        label=f"{row.cache_mb} MB, {row.hits:.0%} hits",
                        value=row.capacity_per_s,
                        is_own=row.cache_mb == report.traffic.replica.image_cache_mb,
                    )
                    for row in plan.caches
                ],
                "posts/s",
                "capacity over cache",
            ),
        ),
    ]  # fmt: skip
    body = [
        "<h1>How many machines does this traffic need?</h1>",
        f'<p class="soft">Costs measured on {escape(str(machine.cpu))}, '
        f"{escape(report.costs.provider)} {escape(report.costs.precision)}, "
        "all cores busy.</p>",
        f'<div class="verdict pass">{escape(_summary(report)).capitalize()}.</div>',
        _headline(report),
        grid(cards),
        section(
            "Checked against real servers",
            "The same requests at the same times, simulated and sent; the error is predicted over "
            "measured.",
            html_table(_CHECK_HEAD, [_check_cells(c) for c in report.checks], numeric=range(8))
            if report.checks
            else "",
        ),
        section("The day by hours", "Replicas follow the rate.", _hours(hours)),
    ]
    return html_page("Capacity plan", body)


def _headline(report: CapacityReport) -> str:
    plan, currency = report.plan, escape(report.traffic.machine.currency)
    scaled, fixed = plan.scaled, plan.fixed
    figures = [
        (f"{scaled.price_per_million:.2f}", f"{currency} per million posts, replicas scaled"),
        (f"{fixed.price_per_million:.2f}", f"{currency} per million posts, peak all day"),
        (f"{scaled.machine_hours:.0f}", "machine hours a day"),
        (f"{1000 * scaled.p99_s:.0f} ms", f"worst p99; {scaled.refused:.2%} refused"),
    ]
    return tiles(figures)


def _hours(hours: Sequence[Hour]) -> str:
    return html_table(
        ("hour", "posts/s", "replicas", "machines", "load", "p99 ms", "refused"),
        [
            (
                f"{number:02d}",
                f"{hour.rate_per_s:.1f}",
                str(hour.replicas),
                str(hour.machines),
                f"{hour.utilisation:.0%}",
                f"{1000 * hour.p99_s:.0f}",
                f"{hour.refused:.2%}",
            )
            for number, hour in enumerate(hours)
        ],
        numeric=range(7),
    )
