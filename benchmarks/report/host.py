"""The host's own cost in the reports: one table of stages."""

from amlr.benchmarks.report.figures import markdown_table, number
from amlr.benchmarks.report.page import card, html_table, section
from amlr.benchmarks.report.records import HostRow, Report

_LEAD = (
    "Processor time of a call, in microseconds a post, whose engine answers at once. Text caches: "
    "cold knew nothing, warm knew other posts, repeated these posts. Certificates come on top "
    "where they are asked for."
)


def host_section(report: Report) -> str:
    """The table as a section of the page; nothing where the host was not measured."""
    if not report.host:
        return ""
    head, lines = _table(report.host)
    table = html_table(head, lines, numeric=range(2, len(head)))
    return section("What the host costs", _LEAD, card("Microseconds a post", table))


def host_markdown(report: Report) -> list[str]:
    """The table as lines of Markdown; none where the host was not measured."""
    if not report.host:
        return []
    return ["", f"The host alone. {_LEAD}", "", markdown_table(*_table(report.host), words=2)]


def _table(rows: list[HostRow]) -> tuple[list[str], list[list[str]]]:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages_us))
    # Pictures come before what is done with them.
    if "pictures" in stages:
        stages.remove("pictures")
        stages.insert(stages.index("batch"), "pictures")
    head = ["post", "text caches", "posts a call", "all", *stages, "certificate"]
    return head, [
        [
            *(row.kind, row.state, str(row.batch), number(row.us_per_post)),
            *(number(row.stages_us.get(stage)) for stage in stages),
            number(row.certificate_us),
        ]
        for row in rows
    ]
