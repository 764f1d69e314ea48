"""Two reports side by side: what became faster, slower, or different."""

from typing import Any

from amlr.benchmarks.figures import number, ratio_text
from amlr.benchmarks.report_markdown import best_rows, table, verdict_line

NOISE = 0.05
"""Changes of the median below this share are not called faster or slower."""


def compare_reports(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Markdown comparison of two reports.

    Times of different machines do not compare; ratios to a peer of the same run still do, so both
    are shown.
    """
    parts = [
        f"before: {verdict_line(before)}",
        f"after:  {verdict_line(after)}",
        *_differences(before, after),
    ]
    old, new = _by_key(before), _by_key(after)
    lines = []
    for key, row in new.items():
        if key not in old:
            continue
        was, now = old[key]["p50_ms"], row["p50_ms"]
        speedup = was / now if was and now else None
        lines.append(
            [
                *(str(part) for part in key),
                number(was),
                number(now),
                ratio_text(speedup),
                _word(speedup),
                ratio_text(old[key]["ratios"].get("research")),
                ratio_text(row["ratios"].get("research")),
            ]
        )
    head = ["workload", "backend", "precision", "batch", "p50 before", "p50 after", "speed-up", "",
            "x research before", "after"]  # fmt: skip
    parts += ["", table(head, lines)] if lines else ["", "No workload is in both reports."]
    for name, keys in (("only before", old.keys() - new.keys()), ("only after", new.keys() - old)):
        if keys:
            listed = ", ".join(sorted(f"{key[0]} {key[1]} b{key[3]}" for key in keys))
            parts += ["", f"{name}: {listed}"]
    return "\n".join(parts) + "\n"


def _by_key(report: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {
        (row["workload"], row["backend"], row["precision"], row["batch"]): row
        for row in best_rows(report["rows"])
    }


def _word(speedup: float | None) -> str:
    if speedup is None or abs(speedup - 1) < NOISE:
        return "same"
    return "faster" if speedup > 1 else "**slower**"


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    notes = []
    if before["machine"]["cpu"] != after["machine"]["cpu"]:
        notes.append(
            f"Different processors ({before['machine']['cpu']}; {after['machine']['cpu']}): "
            "compare the ratios, not the times."
        )
    for name in ("threads", "clock", "data", "quick"):
        a, b = before.get("settings", {}).get(name), after.get("settings", {}).get(name)
        if a != b:
            notes.append(f"Different {name}: {a} before, {b} after.")
    old, new = before["machine"]["packages"], after["machine"]["packages"]
    notes += [
        f"{name}: {old.get(name, 'absent')} before, {new.get(name, 'absent')} after."
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return notes
