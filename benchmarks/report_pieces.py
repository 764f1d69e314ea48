"""Building blocks of the report page."""

from collections.abc import Iterable, Sequence
from html import escape

from amlr.benchmarks.report_style import STYLE


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page: inline style, nothing to fetch."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, lead: str, content: str) -> str:
    """A heading, a sentence, and what follows; nothing when there is no content."""
    if not content:
        return ""
    return f'<h2>{escape(title)}</h2><p class="soft">{escape(lead)}</p>{content}'


def card(title: str, content: str) -> str:
    """A box with a small heading."""
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>'


def html_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Iterable[int] = (),
    mine: Sequence[bool] | None = None,
) -> str:
    """A table of plain texts.

    Args:
        head: Column names; all empty leaves the heading out.
        rows: Cells.
        numeric: Columns that align right.
        mine: Rows to stress.
    """
    right = set(numeric)

    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="num">{escape(value)}</{tag}>' if i in right
            else f"<{tag}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )  # fmt: skip

    stressed = ' class="mine"'
    lines = [
        f"<tr{stressed if mine and mine[i] else ''}>{cells(row, 'td')}</tr>"
        for i, row in enumerate(rows)
    ]
    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'
