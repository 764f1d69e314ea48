"""The report as one self-contained page: inline style, inline SVG, nothing to fetch."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from amlr.benchmarks.report.charts import Bar, bar_chart, reliability_chart
from amlr.benchmarks.report.figures import number, ratio_text
from amlr.benchmarks.report.page import card, grid, html_page, html_table, section, tiles
from amlr.benchmarks.report.records import ParityRecord, Report
from amlr.benchmarks.report.sections import (
    host_section,
    parity_section,
    peers_section,
    resources_section,
    tiers_section,
)
from amlr.benchmarks.report.tables import Line, engine_lines, join_rows, verdict_line

_TILES = ("cold", "hit", "text-only", "end-to-end-cold")
_TITLES = {
    "cold": "New picture: text and image encoders run",
    "hit": "Picture seen before: its regions are cached",
    "text-only": "No picture",
    "end-to-end-cold": "End to end, new picture: text and file in, entities out",
    "end-to-end-hit": "End to end, picture seen before",
    "end-to-end-text-only": "End to end, no picture",
    "block": "The cross-modal block and heads alone",
    "block-text-only": "The block alone, no picture",
}


def render_html(report: Report) -> str:
    """The whole page."""
    lines = join_rows(report.rows)
    engine, settings = report.engine, report.settings
    body = [
        f"<h1>{escape(engine.name)}: is it right, and how fast is it?</h1>",
        f'<p class="soft">{escape(str(report.machine.cpu))}, {settings.threads} thread per system, '
        f"{escape(settings.data)}: {settings.posts:,} posts, {settings.pictures:,} with a "
        f"picture. {escape(report.created[:10])}, amlr {escape(report.amlr)}.</p>",
        _verdict(report.parity),
        _headline(lines, report.parity),
        *(f'<p class="soft">Note: {escape(note)}</p>' for note in report.notes),
        tiers_section(report),
        _speed_section(lines, settings.clock),
        host_section(report.host),
        resources_section(report),
        _calibration_section(report),
        parity_section(report.parity),
        peers_section(report.peers, engine.passed_over),
        _all_rows(lines),
        _method(report),
    ]
    return html_page(f"{engine.name}: parity and speed", body)


def _verdict(parity: ParityRecord) -> str:
    line = verdict_line(parity).partition(": ")[2]
    word = "Same entities" if parity.verdict == "pass" else "Not the same"
    return f'<div class="verdict {parity.verdict}"><strong>{word}</strong>{escape(line)}</div>'


def _headline(lines: Sequence[Line], parity: ParityRecord) -> str:
    """The fastest of the tiers that gave the eager entities; all of them if none did."""
    names = {(t.backend, t.precision) for t in parity.all_tiers if t.verdict == "pass"}
    shown = [x for x in lines if not names or (x.row.backend, x.row.precision) in names]
    figures = []
    for workload in _TILES:
        candidates = engine_lines(shown, workload)
        if not candidates:
            continue
        best = min(candidates, key=lambda line: line.ms_per_post)
        ratio = best.ratios.get("research")
        versus = f"{ratio_text(ratio)} as fast as the published code" if ratio else ""
        text = (
            f'per post, {workload}<br><span class="soft">{versus} '
            f"({escape(best.row.precision)}, batch {best.row.batch})</span>"
        )
        figures.append((f"{number(best.ms_per_post)} ms", text))
    return tiles(figures)


def _speed_section(lines: Sequence[Line], clock: str) -> str:
    cards = []
    for workload, title in _TITLES.items():
        chosen = [line for line in lines if line.row.workload == workload]
        for batch in sorted({line.row.batch for line in chosen}, reverse=True):
            bars = _bars([line for line in chosen if line.row.batch == batch])
            posts = "1 post" if batch == 1 else f"{batch} posts"
            cards.append(card(f"{title}, {posts} a call", bars))
    name = "wall-clock" if clock == "wall" else "processor"
    lead = (
        f"Median {name} milliseconds per post; shorter is better. The thin line reaches to p95 "
        "where there are enough calls. Systems ran in turn within the same minutes, each in its "
        "own process with the same number of threads."
    )
    return section("Speed beside what else you could run", lead, grid(cards))


def _bars(lines: Sequence[Line]) -> str:
    bars = []
    for line in sorted(lines, key=lambda line: line.ms_per_post):
        high = line.row.p95_ms / line.row.batch if line.row.p95_ms else None
        ratio = line.ratios.get("research")
        bars.append(
            Bar(
                label=line.name,
                value=line.ms_per_post,
                note=ratio_text(ratio) if ratio and line.row.backend != "research" else "",
                # A stray slow call would squeeze all bars; the table has the exact figure.
                high=min(high, 2 * line.ms_per_post) if high else None,
                is_own=line.is_engine,
            )
        )
    return bar_chart(bars, "ms", "milliseconds per post")


def _calibration_section(report: Report) -> str:
    calibration = report.calibration
    if calibration is None:
        return ""
    chart = reliability_chart(calibration.before.bins, calibration.after.bins)
    title = "Do scores mean what they say?"
    return section(title, calibration.summary, card("Reliability", chart))


def _all_rows(lines: Sequence[Line]) -> str:
    head = ["workload", "system", "precision", "threads", "batch", "p50 ms", "p95 ms", "p99 ms",
            "posts/s", "times faster than"]  # fmt: skip
    cells = []
    for line in lines:
        row = line.row
        ratios = ", ".join(
            f"{name} {ratio_text(value)}"
            for name, value in line.ratios.items()
            if value is not None and name != row.backend
        )
        figures = map(number, (row.p50_ms, row.p95_ms, row.p99_ms, row.posts_per_s))
        texts = (row.workload, row.backend, row.precision, str(row.threads), str(row.batch))
        cells.append([*texts, *figures, ratios])
    if not cells:
        return ""
    table = html_table(head, cells, numeric=range(3, 9), mine=[line.is_engine for line in lines])
    return f"<details open><summary>Every number</summary>{table}</details>"


def _method(report: Report) -> str:
    machine = report.machine
    facts = [
        ["processor", f"{machine.cpu} ({machine.vendor})"],
        ["instruction sets", ", ".join(machine.features)],
        ["cores, memory", f"{machine.cores}, {machine.memory_gb} GB"],
        ["system", f"{machine.system}, Python {machine.python}"],
        ["libraries", ", ".join(f"{name} {v}" for name, v in machine.packages.items())],
        ["settings", ", ".join(f"{name} {v}" for name, v in asdict(report.settings).items())],
        ["manifest", report.engine.manifest_sha256],
    ]
    lead = (
        "Times are of whole calls, warm, from ready tensors to raw logits of the word-aligned "
        "units; the end-to-end figures add tokenizing, reading and resizing the picture, and "
        "decoding, with the engine's own code around every system. Building the engine's batches "
        "is on its clock. Each system's numbers were checked against eager PyTorch before timing."
    )
    return section("How and where this was measured", lead, html_table(["", ""], facts))
