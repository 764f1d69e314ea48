"""Sections of the report page: tiers, resources, parity, systems."""

from collections.abc import Sequence
from html import escape

from amlr.benchmarks.report.charts import Bar, bar_chart
from amlr.benchmarks.report.figures import error_text, number
from amlr.benchmarks.report.page import card, grid, html_table, section
from amlr.benchmarks.report.records import (
    ChangeRecord,
    HostRow,
    ParityRecord,
    PeerRecord,
    Report,
    Span,
    TierParity,
    is_engine,
)
from amlr.benchmarks.report.tables import (
    HOST_LEAD,
    PRECISION_HEAD,
    SPEED_HEAD,
    auto_lines,
    host_table,
    precision_lines,
    speed_lines,
    system_name,
)

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
