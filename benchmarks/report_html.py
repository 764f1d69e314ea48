"""The report as one self-contained page: inline style, inline SVG, nothing to fetch."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from amlr.benchmarks.charts import Bar, bar_chart, reliability_chart
from amlr.benchmarks.figures import number, ratio_text
from amlr.benchmarks.report_markdown import best_rows, is_growth, verdict_line
from amlr.benchmarks.report_parts import (
    growth_section,
    parity_section,
    peers_section,
    resources_section,
    roofline_section,
)
from amlr.benchmarks.report_pieces import card, html_page, html_table, section
from amlr.benchmarks.report_tiers import tiers_section
from amlr.benchmarks.rows import ENGINE_PREFIX

_NO_TILE = ("end-to-end-hit", "end-to-end-text-only", "block", "block-text-only")
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


def render_html(report: dict[str, Any]) -> str:
    """The whole page."""
    rows = best_rows(report["rows"])
    main = [row for row in rows if not is_growth(row["workload"])]
    engine, settings, machine = report["engine"], report["settings"], report["machine"]
    body = [
        f"<h1>{escape(engine['name'])}: is it right, and how fast is it?</h1>",
        f'<p class="soft">{escape(str(machine["cpu"]))}, {settings["threads"]} thread per system, '
        f"{escape(settings['data'])}: {settings['posts']:,} posts, {settings['pictures']:,} with a "
        f"picture. {escape(report['created'][:10])}, amlr {escape(report['amlr'])}.</p>",
        _verdict(report),
        _tiles(main, report["parity"]),
        *(f'<p class="soft">Note: {escape(note)}</p>' for note in report["notes"]),
        tiers_section(report),
        _speed_section(main, settings),
        growth_section(rows),
        resources_section(report),
        roofline_section(report, main),
        _calibration_section(report),
        parity_section(report["parity"]),
        peers_section(report["peers"], engine.get("passed_over", ())),
        _all_rows(rows),
        _method(report),
    ]
    return html_page(f"{engine['name']}: parity and speed", body)


def _verdict(report: dict[str, Any]) -> str:
    parity = report["parity"]
    line = verdict_line(report).partition(": ")[2]
    word = "Same entities" if parity["verdict"] == "pass" else "Not the same"
    return f'<div class="verdict {parity["verdict"]}"><strong>{word}</strong>{escape(line)}</div>'


def _tiles(rows: Sequence[dict[str, Any]], parity: dict[str, Any]) -> str:
    """The fastest of the tiers that gave the eager entities; all of them if none did."""
    proved = [tier for tier in parity.get("tiers") or [parity] if tier["verdict"] == "pass"]
    names = {(tier["backend"], tier["precision"]) for tier in proved}
    rows = [row for row in rows if not names or (row["backend"], row["precision"]) in names]
    tiles = []
    for workload in _TITLES:
        own = [r for r in rows if r["workload"] == workload and _is_own(r) and r["p50_ms"]]
        if not own or workload in _NO_TILE:
            continue
        best = min(own, key=_per_post)
        ratio = best["ratios"].get("research")
        versus = f"{ratio_text(ratio)} as fast as the published code" if ratio else ""
        tiles.append(
            f'<div class="tile"><b>{number(_per_post(best))} ms</b>per post, {workload}<br>'
            f'<span class="soft">{versus} ({escape(best["precision"])}, batch {best["batch"]})'
            "</span></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _speed_section(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    cards = []
    for workload, title in _TITLES.items():
        batches = sorted({r["batch"] for r in rows if r["workload"] == workload}, reverse=True)
        for batch in batches:
            chosen = [r for r in rows if (r["workload"], r["batch"]) == (workload, batch)]
            posts = "1 post" if batch == 1 else f"{batch} posts"
            cards.append(card(f"{title}, {posts} a call", _bars(chosen)))
    if not cards:
        return ""
    clock = "wall-clock" if settings["clock"] == "wall" else "processor"
    lead = (
        f"Median {clock} milliseconds per post; shorter is better. The thin line reaches to p95 "
        "where there are enough calls. Systems ran in turn within the same minutes, each in its "
        "own process with the same number of threads."
    )
    content = f'<div class="grid2">{"".join(cards)}</div>'
    return section("Speed beside what else you could run", lead, content)


def _bars(rows: Iterable[dict[str, Any]]) -> str:
    bars = []
    for row in sorted(rows, key=_per_post):
        high = row["p95_ms"] / row["batch"] if row["p95_ms"] else None
        ratio = row["ratios"].get("research")
        bars.append(
            Bar(
                label=_label(row),
                value=_per_post(row),
                note=ratio_text(ratio) if ratio and row["backend"] != "research" else "",
                # A stray slow call would squeeze all bars; the table has the exact figure.
                high=min(high, 2 * _per_post(row)) if high else None,
                is_own=_is_own(row),
            )
        )
    return bar_chart(bars, "ms", "milliseconds per post")


def _calibration_section(report: dict[str, Any]) -> str:
    found = report.get("calibration")
    if not found:
        return ""
    chart = reliability_chart(found["before"]["bins"], found["after"]["bins"])
    return section("Do scores mean what they say?", found["summary"], card("Reliability", chart))


def _all_rows(rows: Sequence[dict[str, Any]]) -> str:
    head = ["workload", "system", "precision", "threads", "batch", "p50 ms", "p95 ms", "p99 ms",
            "posts/s", "times faster than"]  # fmt: skip
    lines = []
    for row in rows:
        ratios = ", ".join(
            f"{name} {ratio_text(value)}"
            for name, value in row["ratios"].items()
            if value is not None and name != row["backend"]
        )
        lines.append(
            [row["workload"], row["backend"], row["precision"], str(row["threads"]),
             str(row["batch"]), *(number(row[n]) for n in ("p50_ms", "p95_ms", "p99_ms")),
             number(row["posts_per_s"]), ratios]
        )  # fmt: skip
    if not lines:
        return ""
    own = [row["backend"].startswith(ENGINE_PREFIX) for row in rows]
    return (
        "<details open><summary>Every number</summary>"
        f"{html_table(head, lines, numeric=range(3, 9), mine=own)}</details>"
    )


def _method(report: dict[str, Any]) -> str:
    machine, settings = report["machine"], report["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    facts = [
        ["processor", f"{machine['cpu']} ({machine.get('vendor')})"],
        ["instruction sets", ", ".join(machine["features"])],
        ["cores, memory", f"{machine['cores']}, {machine['memory_gb']} GB"],
        ["system", f"{machine['system']}, Python {machine['python']}"],
        ["libraries", packages],
        ["settings", ", ".join(f"{name} {value}" for name, value in settings.items())],
        ["manifest", str(report["engine"]["manifest_sha256"])],
    ]
    lead = (
        "Times are of whole calls, warm, from ready tensors to raw logits of the word-aligned "
        "units; the end-to-end figures add tokenizing, reading and resizing the picture, and "
        "decoding, with the engine's own code around every system. Building the engine's batches "
        "is on its clock. Each system's numbers were checked against eager PyTorch before timing."
    )
    return section("How and where this was measured", lead, html_table(["", ""], facts))


def _is_own(row: dict[str, Any]) -> bool:
    return bool(row["backend"].startswith(ENGINE_PREFIX))


def _per_post(row: dict[str, Any]) -> float:
    return float(row["p50_ms"] or 0.0) / int(row["batch"])


def _label(row: dict[str, Any]) -> str:
    name = str(row["backend"])
    return name if row["precision"] == "fp32" or "bf16" in name else f"{name} {row['precision']}"
