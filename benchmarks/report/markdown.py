"""A short Markdown summary for a pull request or a README, and two reports side by side."""

from amlr.benchmarks.report.figures import Table, number, ratio_text
from amlr.benchmarks.report.records import Report
from amlr.benchmarks.report.tables import (
    Line,
    auto_lines,
    host_table,
    join_rows,
    precision_table,
    rows_table,
    speed_table,
    verdict_line,
)

NOISE = 0.05
"""Changes of the median below this share are not called faster or slower."""


def render_markdown(report: Report) -> str:
    """The whole summary."""
    settings = report.settings
    tables = (speed_table(report.rows), precision_table(report), host_table(report.host))
    parts = [
        f"**Parity {verdict_line(report.parity)}**",
        f"{report.machine.cpu}, {settings.threads} thread(s) each, {settings.clock} clock, "
        f"{settings.data}, {settings.pictures} of {settings.posts} posts with a picture.",
        *(table.titled() for table in tables),
        "  \n".join(auto_lines(report)),
    ]
    if report.rows:
        every = rows_table(report.rows).markdown()
        parts.append(f"<details><summary>Every system</summary>\n\n{every}\n\n</details>")
    skipped = [peer for peer in report.peers if peer.status != "measured"]
    if skipped:
        lines = (f"- {p.backend} {p.precision} ({p.status}): {p.reason}" for p in skipped)
        parts.append("\n".join(["Not measured:", *lines]))
    if report.calibration:
        parts.append(report.calibration.summary)
    parts += [f"> {note}" for note in report.notes]
    return "\n\n".join(filter(None, parts)) + "\n"


def compare_reports(before: Report, after: Report) -> str:
    """Markdown comparison of two reports.

    Times of different machines do not compare; ratios to a peer of the same run still do, so both
    are shown.
    """
    parts = [
        f"before: {verdict_line(before.parity)}",
        f"after:  {verdict_line(after.parity)}",
        *_differences(before, after),
    ]
    old, new = _by_key(before), _by_key(after)
    lines = []
    for key, line in new.items():
        if key not in old:
            continue
        was, now = old[key].row.p50_ms, line.row.p50_ms
        speedup = was / now if was and now else None
        lines.append(
            [
                *map(str, key),
                *(number(was), number(now), ratio_text(speedup), _word(speedup)),
                *(ratio_text(each.ratios.get("research")) for each in (old[key], line)),
            ]
        )
    head = ["workload", "backend", "precision", "batch", "p50 before", "p50 after", "speed-up", "",
            "x research before", "after"]  # fmt: skip
    parts += [
        "",
        Table(head=head, rows=lines).markdown() if lines else "No workload is in both reports.",
    ]
    for name, keys in (("only before", old.keys() - new.keys()), ("only after", new.keys() - old)):
        if keys:
            listed = ", ".join(sorted(f"{key[0]} {key[1]} b{key[3]}" for key in keys))
            parts += ["", f"{name}: {listed}"]
    return "\n".join(parts) + "\n"


def _by_key(report: Report) -> dict[tuple[str, str, str, int], Line]:
    return {
        (line.row.workload, line.row.backend, line.row.precision, line.row.batch): line
        for line in join_rows(report.rows)
    }


def _word(speedup: float | None) -> str:
    if speedup is None or abs(speedup - 1) < NOISE:
        return "same"
    return "faster" if speedup > 1 else "**slower**"


def _differences(before: Report, after: Report) -> list[str]:
    notes = []
    if before.machine.cpu != after.machine.cpu:
        notes.append(
            f"Different processors ({before.machine.cpu}; {after.machine.cpu}): "
            "compare the ratios, not the times."
        )
    for name in ("threads", "clock", "data", "quick"):
        a, b = getattr(before.settings, name), getattr(after.settings, name)
        if a != b:
            notes.append(f"Different {name}: {a} before, {b} after.")
    old, new = before.machine.packages, after.machine.packages
    notes += [
        f"{name}: {old.get(name, 'absent')} before, {new.get(name, 'absent')} after."
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return notes
