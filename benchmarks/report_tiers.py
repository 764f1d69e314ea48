"""Section of the report page: the engine's tiers in one table, and what each changes."""

from html import escape
from typing import Any

from amlr.benchmarks.precision_table import PRECISION_HEAD, auto_lines, table_lines
from amlr.benchmarks.report_pieces import card, html_table, section
from amlr.benchmarks.tier_table import SPEED_HEAD, speed_lines


def tiers_section(report: dict[str, Any]) -> str:
    """Ratios of each tier, changed entities, F1, memory, and what `auto` took."""
    content = ""
    speed = speed_lines(report["rows"])
    if speed:
        table = html_table(SPEED_HEAD, speed, numeric=range(3, len(SPEED_HEAD)))
        content += card("Speed: tensors to logits, then from text and file to entities", table)
    precision = html_table(PRECISION_HEAD, table_lines(report), numeric=range(4, 10))
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
