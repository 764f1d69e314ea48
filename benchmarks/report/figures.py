"""How figures and tables of figures are written. Imports nothing: every command prints some."""

from collections.abc import Sequence
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


class Html(str):
    """A cell that is HTML already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of figures, which Markdown and pages show alike.

    Attributes:
        head: Column names; all empty for none.
        rows: Cells.
        words: Columns of text; those behind them are figures.
        notes: Columns of text at the end.
        mine: Which rows are the engine's, where the page is to stress them.
        title: Its heading on a page.
        lead: A sentence on the whole of it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 3
    notes: int = 0
    mine: Sequence[bool] | None = None
    title: str = ""
    lead: str = ""

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = "".join("---|" if i < self.words else "--:|" for i in range(len(self.head)))
        first, *rest = ("| " + " | ".join(row) + " |" for row in (self.head, *self.rows))
        return "\n".join([first, f"|{rule}", *rest])

    def titled(self) -> str:
        """The table below its title and lead, in Markdown; nothing without rows."""
        parts = filter(None, [f"**{self.title}**", self.lead, self.markdown()])
        return "\n\n".join(parts) if self.rows else ""
