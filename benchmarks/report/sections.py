"""Sections of the report page: tiers, growth, resources, roofline, parity, systems."""

from collections.abc import Sequence
from html import escape

from amlr.benchmarks.report.charts import Bar, bar_chart, line_chart
from amlr.benchmarks.report.charts import Line as Curve
from amlr.benchmarks.report.figures import error_text, number
from amlr.benchmarks.report.page import card, grid, html_table, section
from amlr.benchmarks.report.records import (
    ENGINE_PREFIX,
    ChangeRecord,
    HostRow,
    ParityRecord,
    PeerRecord,
    Report,
    RooflineRecord,
    Span,
    TierParity,
    is_engine,
)
from amlr.benchmarks.report.tables import (
    HOST_LEAD,
    PRECISION_HEAD,
    SPEED_HEAD,
    Line,
    auto_lines,
    engine_lines,
    host_table,
    precision_lines,
    speed_lines,
    system_name,
)

_GROWTH = {
    "length": ("Longer posts", "tokens a post (picture cached, 8 posts a call)"),
    "batch": ("More posts a call", "posts a call (new pictures)"),
    "images": ("More pictures", "% of posts with a new picture (end to end, 16 posts a call)"),
    "posts": ("More posts waiting", "posts given at once (end to end, pictures cached)"),
}
_PADDING = {
    "padded to 50, as released": "to 50, as released",
    "padded to the longest of 16": "to longest of 16",
    "sorted, then padded to the longest of 16": "sorted, longest of 16",
}
_MAX_CHANGES = 50


def tiers_section(report: Report) -> str:
    """Ratios of each tier, changed entities, F1, memory, and what `auto` took."""
    content = ""
    speed = speed_lines(report.rows)
    if speed:
        table = html_table(SPEED_HEAD, speed, numeric=range(3, len(SPEED_HEAD)))
        content += card("Speed: tensors to logits, then from text and file to entities", table)
    precision = html_table(PRECISION_HEAD, precision_lines(report), numeric=range(4, 10))
    content += card("Precision: what it changes, what it takes", precision)
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


def growth_section(lines: Sequence[Line]) -> str:
    """Curves of milliseconds per post."""
    cards = []
    for kind, (title, x_label) in _GROWTH.items():
        points = {
            (line.name, int(line.row.workload.split("-")[1])): line.ms_per_post
            for line in lines
            if line.row.workload.split("-")[0] == kind and line.row.p50_ms
        }
        if not points:
            continue
        places = sorted({place for _, place in points})
        curves = [
            Curve(
                label=name,
                values=[points.get((name, place)) for place in places],
                is_own=name.startswith(ENGINE_PREFIX),
            )
            for name in dict.fromkeys(name for name, _ in points)
        ]
        cards.append(card(title, line_chart(curves, [*map(str, places)], x_label, "ms per post")))
    lead = "Median milliseconds per post as the work grows."
    return section("How cost grows", lead, grid(cards))


def resources_section(report: Report) -> str:
    """Memory, start-up, first post, disk, padding."""
    peers = [peer for peer in report.peers if peer.status == "measured"]
    cards = []
    for title, field, unit in (
        ("Peak memory of the process", "peak_memory_mb", "MiB"),
        ("Import and load, processor time", "load_cpu_s", "s"),
        ("First post after loading", "first_post_ms", "ms"),
    ):
        values = [(getattr(peer, field), peer) for peer in peers]
        known = [(value, peer) for value, peer in values if value is not None]
        bars = [
            Bar(
                label=system_name(peer.backend, peer.precision),
                value=value,
                is_own=is_engine(peer.backend),
            )
            for value, peer in sorted(known, key=lambda pair: pair[0])
        ]
        if bars:
            cards.append(card(title, bar_chart(bars, unit, title)))
    resources = report.resources
    padding = resources.padding
    if padding.steps_wasted:
        bars = [
            Bar(
                label=_PADDING.get(name, name), value=round(100 * share, 1), is_own=name == "packed"
            )
            for name, share in padding.steps_wasted.items()
        ]
        units = ", ".join(f"{name} {count:g}" for name, count in padding.units.items())
        note = (
            f'<p class="soft">{padding.windows:,} posts of {padding.tokens_mean:g} tokens on '
            f"average, {padding.tokens_max} at most. Units scored a post: {escape(units)}.</p>"
        )
        cards.append(card("Text steps wasted on padding", bar_chart(bars, "%", "padding") + note))
    sizes = ", ".join(f"{name} {number(size)} MB" for name, size in resources.variants_mb.items())
    lead = f"The bundle takes {number(resources.bundle_mb)} MB on disk; graphs: {sizes}."
    return section("What it takes to run", lead, grid(cards) or " ")


def roofline_section(roof: RooflineRecord | None, lines: Sequence[Line]) -> str:
    """Distance from the fastest matrix product this machine was seen to do."""
    if roof is None or not roof.peak_fp32_gflops:
        return ""
    work = roof.mflop_per_post
    cells = []
    for workload in ("cold", "hit"):
        exact = [line for line in engine_lines(lines, workload) if line.row.precision == "fp32"]
        bound = roof.bound_ms_per_post[workload]
        if not exact or bound is None:
            continue
        best = min(exact, key=lambda line: line.ms_per_post)
        cells.append(
            [
                *(workload, f"{best.row.backend}, batch {best.row.batch}", number(work[workload])),
                *(
                    number(bound),
                    number(best.ms_per_post),
                    f"{100 * bound / best.ms_per_post:.0f} %",
                ),
            ]
        )
    head = ["workload", "system", "MFLOP", "bound ms", "took ms", "of roof"]
    speeds = [[name, number(value)] for name, value in roof.gflops.items() if value]
    products = html_table(["library", "GFLOP/s"], speeds, numeric=(1,))
    content = grid(
        [
            card("Float32", html_table(head, cells, numeric=range(2, 6))),
            card("Best matrix product, GFLOP/s", products),
        ]
    )
    lead = (
        f"With the operations that exact lengths and word-aligned units need, done at "
        f"{number(roof.peak_fp32_gflops)} GFLOP/s, nothing in float32 can be faster than the "
        f"bound. The published form needs {number(work['research'])} MFLOP a post. Folding work "
        "ahead of time can beat the bound, which counts the plain order of products."
    )
    return section("Distance to the machine's limit", lead, content)


def parity_section(parity: ParityRecord) -> str:
    """Tiers, and every changed entity with its post."""
    tiers = parity.all_tiers
    outputs = list(parity.max_abs_error)
    head = ["tier", "precision", "verdict", "posts", "entities", "changed", "undecidable posts",
            *(f"max error {name}" for name in outputs)]  # fmt: skip
    lines = [
        [tier.backend, tier.precision, tier.verdict, f"{tier.posts:,}", f"{tier.entities:,}",
         str(tier.changed_entities), str(tier.undecidable_posts),
         *(error_text(tier.max_abs_error[name]) for name in outputs)]
        for tier in tiers
    ]  # fmt: skip
    content = card("Tiers", html_table(head, lines, numeric=range(3, 7 + len(outputs))))
    content += "".join(_changes(tier) for tier in tiers if tier.changes)
    lead = (
        "Both sides read the same texts and pictures and decode the same way; only the model's "
        "numbers come from different places. A post is undecidable when the eager model's own best "
        "answer leads by less than float32 noise (1e-5)."
    )
    return section("Parity with the eager PyTorch model", lead, content)


def _changes(tier: TierParity) -> str:
    heads = ("post", "text", "only eager", "only engine", "margin", "first diverging output")
    rows = "".join(_change_row(change) for change in tier.changes[:_MAX_CHANGES])
    more = len(tier.changes) - _MAX_CHANGES
    note = f'<p class="soft">{more} more in bench.json.</p>' if more > 0 else ""
    return card(
        f"Changed entities: {tier.backend} {tier.precision}",
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{rows}</tbody></table></div>{note}",
    )


def _change_row(change: ChangeRecord) -> str:
    margin = "–" if change.margin is None else f"{change.margin:.3g}"
    apart = " (undecidable)" if change.undecidable else ""
    sides = "".join(
        f"<td>{escape(_spans(change.text, spans))}</td>" for spans in (change.missing, change.added)
    )
    return (
        f"<tr><td>{escape(change.id)}</td>"
        f"<td>{_marked(change.text, [*change.missing, *change.added])}</td>"
        f'{sides}<td class="num">{margin}{apart}</td>'
        f"<td>{escape(change.first_diverging)}</td></tr>"
    )


def _spans(text: str, spans: Sequence[Span]) -> str:
    return ", ".join(f"{text[start:end]} ({label})" for start, end, label in spans) or "–"


def _marked(text: str, spans: Sequence[Span]) -> str:
    """The text with all named spans marked; overlapping ones become one mark."""
    parts, end = [], 0
    for start, stop, _ in sorted(spans):
        if stop <= end:
            continue
        begin = max(start, end)
        parts += [escape(text[end:begin]), f"<mark>{escape(text[begin:stop])}</mark>"]
        end = stop
    return "".join([*parts, escape(text[end:])])


def peers_section(peers: Sequence[PeerRecord], passed_over: Sequence[str]) -> str:
    """Who took part, who could not and why."""
    head = ["system", "precision", "what it is", "status", "largest error"]
    lines = [
        [peer.backend, peer.precision, peer.about,
         peer.status + (f": {peer.reason}" if peer.reason else ""), error_text(peer.max_abs_error)]
        for peer in peers
    ]  # fmt: skip
    lead = "Largest error: of any raw logit against eager PyTorch on the timed posts."
    content = html_table(head, lines, numeric=(4,)) if lines else ""
    content += "".join(f'<p class="soft">{escape(note)}</p>' for note in passed_over)
    return section("Systems", lead, content)


def host_section(rows: Sequence[HostRow]) -> str:
    """The host's own cost."""
    if not rows:
        return ""
    head, lines = host_table(rows)
    table = html_table(head, lines, numeric=range(2, len(head)))
    return section("What the host costs", HOST_LEAD, card("Microseconds a post", table))
