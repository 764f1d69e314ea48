"""How figures and tables of figures are written. Imports nothing: every command prints some."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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


def error_text(value: float | None) -> str:
    """A numeric error such as `1.2e-06`."""
    return "–" if value is None else f"{value:.1e}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]], *, words: int = 3) -> str:
    """A Markdown table.

    Args:
        head: Column names.
        lines: Cells.
        words: Columns of text; those behind them align right.
    """
    rule = "".join("---|" if i < words else "--:|" for i in range(len(head)))
    first, *rest = ("| " + " | ".join(row) + " |" for row in (head, *lines))
    return "\n".join([first, f"|{rule}", *rest])


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a report, which Markdown and the page show alike.

    Attributes:
        head: Column names.
        rows: Cells.
        words: Columns of text; those behind them are figures.
        notes: Columns of text at the end.
        mine: Which rows are the engine's, where the page is to stress them.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 3
    notes: int = 0
    mine: Sequence[bool] | None = None

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.head, self.rows, words=self.words)
