"""A short Markdown summary, for a pull request or a README."""

from amlr.benchmarks.report.figures import markdown_table, number, ratio_text
from amlr.benchmarks.report.records import Report
from amlr.benchmarks.report.tables import (
    BASELINES,
    HOST_LEAD,
    PRECISION_HEAD,
    SPEED_HEAD,
    Line,
    auto_lines,
    host_table,
    join_rows,
    precision_lines,
    speed_lines,
    verdict_line,
)


def render_markdown(report: Report) -> str:
    """The whole summary."""
    settings = report.settings
    parts = [
        f"**Parity {verdict_line(report.parity)}**",
        "",
        f"{report.machine.cpu}, {settings.threads} thread(s) each, {settings.clock} clock, "
        f"{settings.data}, {settings.pictures} of {settings.posts} posts with a picture.",
    ]
    speed = speed_lines(report.rows)
    if speed:
        lead = (
            "Tensors to logits, one call of the largest batch; then the same from text and picture "
            "file to entities:"
        )
        parts += ["", lead, "", markdown_table(SPEED_HEAD, speed)]
    parts += ["", markdown_table(PRECISION_HEAD, precision_lines(report))]
    auto = auto_lines(report)
    parts += ["", *(f"{line}  " for line in auto)] if auto else []
    lines = join_rows(report.rows)
    if lines:
        head = ["workload", "backend", "precision", "batch", "p50 ms", "p95 ms", "p99 ms",
                "posts/s", *(f"x {name}" for name in BASELINES)]  # fmt: skip
        listed = markdown_table(head, [_cells(line) for line in lines])
        parts += ["", "<details><summary>Every system</summary>", "", listed, "", "</details>"]
    if report.host:
        table = markdown_table(*host_table(report.host), words=2)
        parts += ["", f"The host alone. {HOST_LEAD}", "", table]
    skipped = [peer for peer in report.peers if peer.status != "measured"]
    if skipped:
        parts += ["", "Not measured:"]
        parts += [f"- {p.backend} {p.precision} ({p.status}): {p.reason}" for p in skipped]
    if report.calibration:
        parts += ["", report.calibration.summary]
    parts += [f"\n> {note}" for note in report.notes]
    return "\n".join(parts) + "\n"


def _cells(line: Line) -> list[str]:
    row = line.row
    bold = "**" if line.is_engine else ""
    return [
        *(row.workload, f"{bold}{row.backend}{bold}", row.precision, str(row.batch)),
        *map(number, (row.p50_ms, row.p95_ms, row.p99_ms, row.posts_per_s)),
        *(ratio_text(line.ratios.get(name)) for name in BASELINES),
    ]
