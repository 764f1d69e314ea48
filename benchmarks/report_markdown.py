"""A short Markdown summary, for a pull request or a README."""

from collections.abc import Iterable, Sequence
from typing import Any

from amlr.benchmarks.figures import number, ratio_text
from amlr.benchmarks.precision_table import PRECISION_HEAD, auto_lines, table_lines
from amlr.benchmarks.rows import ENGINE_PREFIX
from amlr.benchmarks.tier_table import SPEED_HEAD, speed_lines

_SHOWN_BASELINES = ("research", "research-mkl", "openvino")


def best_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per workload, batch, backend and precision, `ratios` by baseline joined."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["workload"], row["batch"], row["backend"], row["precision"])
        one = merged.setdefault(key, {**row, "ratios": {}})
        if row["baseline"] is not None:
            one["ratios"][row["baseline"]] = row["ratio"]
    return list(merged.values())


def is_growth(workload: str) -> bool:
    """Whether a workload is a point of a growth curve."""
    return workload.split("-")[0] in ("length", "batch", "images", "posts")


def verdict_line(report: dict[str, Any]) -> str:
    """Parity in one sentence."""
    parity = report["parity"]
    errors = ", ".join(
        f"{name} {'not finite' if error is None else f'{error:.1e}'}"
        for name, error in parity["max_abs_error"].items()
    )
    apart = parity.get("undecidable_changed_entities", 0)
    more = f", {apart} more in undecidable posts" if apart else ""
    line = (
        f"{parity['verdict'].upper()}: {parity['changed_entities']} of {parity['entities']:,} "
        f"entities changed{more} over {parity['posts']:,} posts; largest errors: {errors}"
    )
    return f"{line}; {parity['reason']}" if parity.get("reason") else line


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers right-aligned from the fourth column on."""
    rule = ["---" if i < 3 else "--:" for i in range(len(head))]
    rows = [head, rule, *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def render_markdown(report: dict[str, Any]) -> str:
    """The whole summary."""
    settings, machine = report["settings"], report["machine"]
    parts = [
        f"**Parity {verdict_line(report)}**",
        "",
        f"{machine['cpu']}, {settings['threads']} thread(s) each, {settings['clock']} clock, "
        f"{settings['data']}, {settings['pictures']} of {settings['posts']} posts with a picture.",
    ]
    speed = speed_lines(report["rows"])
    if speed:
        parts += ["", "Tensors to logits, one call of the largest batch; then the same from text "
                  "and picture file to entities:", "", table(SPEED_HEAD, speed)]  # fmt: skip
    parts += ["", table(PRECISION_HEAD, table_lines(report))]
    auto = auto_lines(report)
    parts += ["", *(f"{line}  " for line in auto)] if auto else []
    rows = [row for row in best_rows(report["rows"]) if not is_growth(row["workload"])]
    if rows:
        head = ["workload", "backend", "precision", "batch", "p50 ms", "p95 ms", "p99 ms",
                "posts/s", *(f"x {name}" for name in _SHOWN_BASELINES)]  # fmt: skip
        listed = table(head, [_line(row) for row in rows])
        parts += ["", "<details><summary>Every system</summary>", "", listed, "", "</details>"]
    skipped = [p for p in report.get("peers", ()) if p["status"] != "measured"]
    if skipped:
        parts += ["", "Not measured:"]
        parts += [f"- {p['backend']} {p['precision']} ({p['status']}): {p['reason']}"
                  for p in skipped]  # fmt: skip
    if report.get("calibration"):
        parts += ["", report["calibration"]["summary"]]
    parts += [f"\n> {note}" for note in report.get("notes", ())]
    return "\n".join(parts) + "\n"


def _line(row: dict[str, Any]) -> list[str]:
    is_own = row["backend"].startswith(ENGINE_PREFIX)
    bold = "**" if is_own else ""
    return [
        row["workload"],
        f"{bold}{row['backend']}{bold}",
        row["precision"],
        str(row["batch"]),
        number(row["p50_ms"]),
        number(row["p95_ms"]),
        number(row["p99_ms"]),
        number(row["posts_per_s"]),
        *(ratio_text(row["ratios"].get(name)) for name in _SHOWN_BASELINES),
    ]
