"""Sections of the report page: growth, resources, roofline, parity, peers."""

from collections.abc import Sequence
from html import escape
from typing import Any

from amlr.benchmarks.charts import Bar, Line, bar_chart, line_chart
from amlr.benchmarks.figures import number
from amlr.benchmarks.report_pieces import card, html_table, section
from amlr.benchmarks.rows import ENGINE_PREFIX

_GROWTH = {
    "length": ("Longer posts", "tokens a post (picture cached, 8 posts a call)"),
    "batch": ("More posts a call", "posts a call (new pictures)"),
    "images": ("More pictures", "% of posts with a new picture (end to end, 16 posts a call)"),
    "posts": ("More posts waiting", "posts given at once (end to end, pictures cached)"),
}
_MAX_CHANGES = 50


def growth_section(rows: Sequence[dict[str, Any]]) -> str:
    """Curves of milliseconds per post."""
    cards = []
    for kind, (title, x_label) in _GROWTH.items():
        own = [row for row in rows if row["workload"].split("-")[0] == kind]
        if not own:
            continue
        places = sorted({int(row["workload"].split("-")[1]) for row in own})
        found: dict[str, dict[int, float]] = {}
        for row in own:
            if row["p50_ms"]:
                name = _name(row)
                place = int(row["workload"].split("-")[1])
                found.setdefault(name, {})[place] = row["p50_ms"] / row["batch"]
        lines = [
            Line(
                label=name,
                values=[values.get(place) for place in places],
                is_own=name.startswith(ENGINE_PREFIX),
            )
            for name, values in found.items()
        ]
        labels = [str(place) for place in places]
        cards.append(card(title, line_chart(lines, labels, x_label, "ms per post")))
    lead = "Median milliseconds per post as the work grows."
    return section("How cost grows", lead, _grid(cards))


def resources_section(report: dict[str, Any]) -> str:
    """Memory, start-up, first post, disk, padding."""
    peers = [peer for peer in report["peers"] if peer["status"] == "measured"]
    cards = []
    for title, field, unit in (
        ("Peak memory of the process", "peak_memory_mb", "MB"),
        ("Import and load, processor time", "load_cpu_s", "s"),
        ("First post after loading", "first_post_ms", "ms"),
    ):
        bars = [
            Bar(label=_name(peer), value=peer[field], is_own=_is_own(peer))
            for peer in sorted(peers, key=lambda p: p[field] or 0.0)
            if peer[field] is not None
        ]
        if bars:
            cards.append(card(title, bar_chart(bars, unit, title)))
    resources = report["resources"]
    padding = resources.get("padding") or {}
    wasted = padding.get("steps_wasted", {})
    if wasted:
        bars = [
            Bar(label=_short(name), value=round(100 * share, 1), is_own=name == "packed")
            for name, share in wasted.items()
        ]
        units = ", ".join(f"{name} {count:g}" for name, count in padding["units"].items())
        note = (
            f'<p class="soft">{padding["windows"]:,} posts of {padding["tokens_mean"]:g} tokens on '
            f"average, {padding['tokens_max']} at most. Units scored a post: {escape(units)}.</p>"
        )
        cards.append(card("Text steps wasted on padding", bar_chart(bars, "%", "padding") + note))
    sizes = ", ".join(f"{n} {number(size)} MB" for n, size in resources["variants_mb"].items())
    lead = f"The bundle takes {number(resources['bundle_mb'])} MB on disk; graphs: {sizes}."
    return section("What it takes to run", lead, _grid(cards) if cards else " ")


def roofline_section(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Distance from the fastest matrix product this machine was seen to do."""
    roof = report.get("roofline")
    if not roof or not roof["peak_fp32_gflops"]:
        return ""
    bound, work = roof["bound_ms_per_post"], roof["mflop_per_post"]
    lines = []
    for workload in ("cold", "hit"):
        own = [
            row for row in rows
            if row["workload"] == workload and _is_own(row) and row["precision"] == "fp32"
        ]  # fmt: skip
        if not own:
            continue
        best = min(own, key=lambda row: row["p50_ms"] / row["batch"])
        taken = best["p50_ms"] / best["batch"]
        lines.append(
            [workload, f"{best['backend']}, batch {best['batch']}", number(work[workload]),
             number(bound[workload]), number(taken), f"{100 * bound[workload] / taken:.0f} %"]
        )  # fmt: skip
    head = ["workload", "system", "MFLOP", "bound ms", "took ms", "of roof"]
    speeds = [[name, number(value)] for name, value in roof["gflops"].items() if value]
    content = _grid(
        [
            card("Float32", html_table(head, lines, numeric=range(2, 6))),
            card("Best matrix product, GFLOP/s", html_table(["library", "GFLOP/s"], speeds,
                                                            numeric=(1,))),
        ]
    )  # fmt: skip
    lead = (
        f"With the operations that exact lengths and word-aligned units need, done at "
        f"{number(roof['peak_fp32_gflops'])} GFLOP/s, nothing in float32 can be faster than the "
        f"bound. The published form needs {number(work['research'])} MFLOP a post. Folding work "
        "ahead of time can beat the bound, which counts the plain order of products."
    )
    return section("Distance to the machine's limit", lead, content)


def parity_section(parity: dict[str, Any]) -> str:
    """Tiers, and every changed entity with its post."""
    tiers = parity.get("tiers") or [parity]
    outputs = list(parity["max_abs_error"])
    head = ["tier", "precision", "verdict", "posts", "entities", "changed", "undecidable posts",
            *(f"max error {name}" for name in outputs)]  # fmt: skip
    lines = [
        [tier.get("backend", ""), tier.get("precision", ""), tier["verdict"],
         f"{tier['posts']:,}", f"{tier['entities']:,}", str(tier["changed_entities"]),
         str(tier.get("undecidable_posts", "")),
         *(_error(tier["max_abs_error"][name]) for name in outputs)]
        for tier in tiers
    ]  # fmt: skip
    content = card("Tiers", html_table(head, lines, numeric=range(3, 7 + len(outputs))))
    for tier in tiers:
        content += _changes(tier)
    lead = (
        "Both sides read the same texts and pictures and decode the same way; only the model's "
        "numbers come from different places. A post is undecidable when the eager model's own best "
        "answer leads by less than float32 noise (1e-5)."
    )
    return section("Parity with the eager PyTorch model", lead, content)


def _changes(tier: dict[str, Any]) -> str:
    changes = tier.get("changes") or []
    if not changes:
        return ""
    rows = []
    for change in changes[:_MAX_CHANGES]:
        margin = "–" if change["margin"] is None else f"{change['margin']:.3g}"
        apart = " (undecidable)" if change.get("undecidable") else ""
        rows.append(
            f"<tr><td>{escape(str(change['id']))}</td>"
            f"<td>{_marked(change['text'], [*change['missing'], *change['added']])}</td>"
            f"<td>{escape(_spans(change, 'missing'))}</td><td>{escape(_spans(change, 'added'))}"
            f'</td><td class="num">{margin}{apart}</td>'
            f"<td>{escape(change['first_diverging'])}</td></tr>"
        )
    more = len(changes) - _MAX_CHANGES
    note = f'<p class="soft">{more} more in bench.json.</p>' if more > 0 else ""
    title = f"Changed entities: {tier.get('backend', '')} {tier.get('precision', '')}"
    heads = ("post", "text", "only eager", "only engine", "margin", "first diverging output")
    return card(
        title,
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}",
    )


def _spans(change: dict[str, Any], side: str) -> str:
    return ", ".join(f"{change['text'][s:e]} ({label})" for s, e, label in change[side]) or "–"


def _marked(text: str, spans: Sequence[Sequence[Any]]) -> str:
    """The text with all named spans marked; overlapping ones become one mark."""
    parts, end = [], 0
    for start, stop, _ in sorted((int(s), int(e), label) for s, e, label in spans):
        if stop <= end:
            continue
        begin = max(start, end)
        parts += [escape(text[end:begin]), f"<mark>{escape(text[begin:stop])}</mark>"]
        end = stop
    return "".join([*parts, escape(text[end:])])


def peers_section(peers: Sequence[dict[str, Any]], passed_over: Sequence[str]) -> str:
    """Who took part, who could not and why."""
    head = ["system", "precision", "what it is", "status", "largest error"]
    lines = [
        [peer["backend"], peer["precision"], peer.get("about", ""),
         peer["status"] + (f": {peer['reason']}" if peer["reason"] else ""),
         _error(peer.get("max_abs_error"))]
        for peer in peers
    ]  # fmt: skip
    lead = "Largest error: of any raw logit against eager PyTorch on the timed posts."
    content = html_table(head, lines, numeric=(4,)) if lines else ""
    content += "".join(f'<p class="soft">{escape(note)}</p>' for note in passed_over)
    return section("Systems", lead, content)


def _grid(cards: Sequence[str]) -> str:
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _is_own(row: dict[str, Any]) -> bool:
    return bool(row["backend"].startswith(ENGINE_PREFIX))


def _name(row: dict[str, Any]) -> str:
    name = str(row["backend"])
    return name if row["precision"] == "fp32" or "bf16" in name else f"{name} {row['precision']}"


def _short(name: str) -> str:
    return {
        "padded to 50, as released": "to 50, as released",
        "padded to the longest of 16": "to longest of 16",
        "sorted, then padded to the longest of 16": "sorted, longest of 16",
        "packed": "packed",
    }.get(name, name)
