"""The report as one self-contained page: inline style, inline SVG, nothing to fetch."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from amlr.benchmarks.report.charts import Bar, bar_chart, reliability_chart
from amlr.benchmarks.report.figures import Html, Table, number, ratio_text
from amlr.benchmarks.report.page import (
    card,
    grid,
    html_page,
    html_table,
    section,
    table_card,
    table_section,
    tiles,
)
from amlr.benchmarks.report.records import (
    ChangeRecord,
    ParityRecord,
    Report,
    Span,
    TierParity,
    is_engine,
)
from amlr.benchmarks.report.tables import (
    Line,
    auto_lines,
    host_table,
    join_rows,
    parity_table,
    precision_table,
    rows_table,
    speed_table,
    system_name,
    systems_table,
    verdict_line,
)

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
_MAX_CHANGES = 50


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
        _tiers_section(report),
        _speed_section(lines, settings.clock),
        table_section(host_table(report.host)),
        _resources_section(report),
        _calibration_section(report),
        _parity_section(report.parity),
        _systems_section(report),
        _all_rows(report),
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
        timed = [x for x in shown if x.is_engine and x.row.workload == workload and x.ms_per_post]
        if not timed:
            continue
        best = min(timed, key=lambda line: line.ms_per_post)
        ratio = best.ratios.get("research")
        versus = f"{ratio_text(ratio)} as fast as the published code" if ratio else ""
        text = (
            f'per post, {workload}<br><span class="soft">{versus} '
            f"({escape(best.row.precision)}, batch {best.row.batch})</span>"
        )
        figures.append((f"{number(best.ms_per_post)} ms", text))
    return tiles(figures)


def _tiers_section(report: Report) -> str:
    """Ratios of each tier, changed entities, F1, memory, and what `auto` took."""
    content = table_card(speed_table(report.rows)) + table_card(precision_table(report))
    auto = auto_lines(report)
    if auto:
        rows = "".join(f"<p>{escape(line)}</p>" for line in auto)
        content += card("What auto serves on this machine", rows)
    lead = (
        "Ratios are medians of the same interleaved run. An OpenVINO baseline is in the tier's own "
        "precision where it was measured, as named. Posts not calibrated on: the half by a hash of "
        "the text that the export leaves out. At most: the share that no change in so many posts "
        "still allows, at 95 %."
    )
    return section("The engine's tiers", lead, content)


def _speed_section(lines: Sequence[Line], clock: str) -> str:
    cards = []
    for workload, title in _TITLES.items():
        chosen = [line for line in lines if line.row.workload == workload]
        for batch in sorted({line.row.batch for line in chosen}, reverse=True):
            bars = [_speed_bar(line) for line in chosen if line.row.batch == batch]
            posts = "1 post" if batch == 1 else f"{batch} posts"
            chart = bar_chart(bars, "ms", "milliseconds per post")
            cards.append(card(f"{title}, {posts} a call", chart))
    name = "wall-clock" if clock == "wall" else "processor"
    lead = (
        f"Median {name} milliseconds per post; shorter is better. The thin line reaches to p95 "
        "where there are enough calls. Systems ran in turn within the same minutes, each in its "
        "own process with the same number of threads."
    )
    return section("Speed beside what else you could run", lead, grid(cards))


def _speed_bar(line: Line) -> Bar:
    ratio = line.ratios.get("research")
    high = line.row.p95_ms / line.row.batch if line.row.p95_ms else None
    return Bar(
        label=line.name,
        value=line.ms_per_post,
        note=ratio_text(ratio) if ratio and line.row.backend != "research" else "",
        # A stray slow call would squeeze all bars; the table has the exact figure.
        high=min(high, 2 * line.ms_per_post) if high else None,
        is_own=line.is_engine,
    )


def _resources_section(report: Report) -> str:
    """Memory, start-up, first post, disk."""
    cards = []
    for title, field, unit in (
        ("Peak memory of the process", "peak_memory_mb", "MiB"),
        ("Import and load, processor time", "load_cpu_s", "s"),
        ("First post after loading", "first_post_ms", "ms"),
    ):
        bars = [
            Bar(
                label=system_name(peer.backend, peer.precision),
                value=getattr(peer, field),
                is_own=is_engine(peer.backend),
            )
            for peer in report.peers
            if peer.status == "measured" and getattr(peer, field) is not None
        ]
        if bars:
            cards.append(card(title, bar_chart(bars, unit, title)))
    resources = report.resources
    sizes = ", ".join(f"{name} {number(size)} MB" for name, size in resources.variants_mb.items())
    lead = f"The bundle takes {number(resources.bundle_mb)} MB on disk; graphs: {sizes}."
    return section("What it takes to run", lead, grid(cards) or " ")


def _calibration_section(report: Report) -> str:
    calibration = report.calibration
    if calibration is None:
        return ""
    chart = reliability_chart(calibration.before.bins, calibration.after.bins)
    title = "Do scores mean what they say?"
    return section(title, calibration.summary, card("Reliability", chart))


def _parity_section(parity: ParityRecord) -> str:
    """Tiers, and every changed entity with its post."""
    content = table_card(parity_table(parity))
    content += "".join(_changes(tier) for tier in parity.all_tiers)
    lead = (
        "Both sides read the same texts and pictures and decode the same way; only the model's "
        "numbers come from different places. A post is undecidable when the eager model's own best "
        "answer leads by less than float32 noise (1e-5)."
    )
    return section("Parity with the eager PyTorch model", lead, content)


def _changes(tier: TierParity) -> str:
    shown = tier.changes[:_MAX_CHANGES]
    more = len(tier.changes) - len(shown)
    table = Table(
        title=f"Changed entities: {tier.backend} {tier.precision}",
        head=("post", "text", "only eager", "only engine", "margin", "first diverging output"),
        rows=[_change_cells(change) for change in shown],
        words=4,
        notes=1,
    )
    return table_card(table) + (f'<p class="soft">{more} more in bench.json.</p>' if more else "")


def _change_cells(change: ChangeRecord) -> list[str]:
    margin = "–" if change.margin is None else f"{change.margin:.3g}"
    return [
        change.id,
        _marked(change.text, [*change.missing, *change.added]),
        _spans(change.text, change.missing),
        _spans(change.text, change.added),
        margin + (" (undecidable)" if change.undecidable else ""),
        change.first_diverging,
    ]


def _spans(text: str, spans: Sequence[Span]) -> str:
    return ", ".join(f"{text[start:end]} ({label})" for start, end, label in spans) or "–"


def _marked(text: str, spans: Sequence[Span]) -> Html:
    """The text with all named spans marked; overlapping ones become one mark."""
    parts, end = [], 0
    for start, stop, _ in sorted(spans):
        if stop <= end:
            continue
        begin = max(start, end)
        parts += [escape(text[end:begin]), f"<mark>{escape(text[begin:stop])}</mark>"]
        end = stop
    return Html("".join([*parts, escape(text[end:])]))


def _systems_section(report: Report) -> str:
    lead = "Largest error: of any raw logit against eager PyTorch on the timed posts."
    notes = (f'<p class="soft">{escape(note)}</p>' for note in report.engine.passed_over)
    content = table_card(systems_table(report.peers)) + "".join(notes)
    return section("Systems", lead, content)


def _all_rows(report: Report) -> str:
    table = table_card(rows_table(report.rows))
    return f"<details open><summary>Every number</summary>{table}</details>" if table else ""


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
    table = html_table(Table(head=("", ""), rows=facts))
    return section("How and where this was measured", lead, table)
