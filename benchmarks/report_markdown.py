"""A short Markdown summary, for a pull request or a README."""

from collections.abc import Iterable, Sequence
from typing import Any

from amlr.benchmarks.rows import ENGINE_PREFIX

_SHOWN_BASELINES = ("research", "research-mkl", "openvino")


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent; an unknown value is a dash."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def ratio_text(value: float | None) -> str:
    """A ratio such as `3.4x`."""
    return "–" if value is None else f"{number(value, 2 if value < 10 else 3)}x"


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
    rows = [row for row in best_rows(report["rows"]) if not is_growth(row["workload"])]
    if rows:
        head = ["workload", "backend", "precision", "batch", "p50 ms", "p95 ms", "p99 ms",
                "posts/s", *(f"x {name}" for name in _SHOWN_BASELINES)]  # fmt: skip
        parts += ["", table(head, [_line(row) for row in rows])]
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
