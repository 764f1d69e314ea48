"""Building blocks of the report pages: style, sections, cards, tables."""

from collections.abc import Iterable, Sequence
from html import escape

from amlr.benchmarks.report.figures import Html, Table

RIGHT, MINE = ' class="num"', ' class="mine"'
# One column, light and dark, printable, no font to fetch.
STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #5d6672;
  --rule: #e2e4e8; --own: #0b6e8f; --peer: #b4bcc7; --good: #17713f; --good-bg: #e3f4ea;
  --bad: #a32020; --bad-bg: #fbe7e6; --l0: #8a5a00; --l1: #6b4bb3; --l2: #4a7a2c; --l3: #a03a6b; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --card: #1c2026; --ink: #e7eaee;
  --soft: #9aa4b1; --rule: #2e343c; --own: #4fb9dc; --peer: #4d5763; --good: #6fd49a;
  --good-bg: #14301f; --bad: #ff9a92; --bad-bg: #3a1a1a; --l0: #e0b050; --l1: #b59cf0;
  --l2: #9ccf72; --l3: #ee8fba; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 6px 0; max-width: 78ch; }
.soft, figcaption { color: var(--soft); font-size: 14px; }
.verdict { border-radius: 10px; padding: 14px 18px; margin: 18px 0; font-size: 17px; }
.verdict strong { font-size: 20px; margin-right: 8px; }
.pass { background: var(--good-bg); color: var(--good); }
.fail { background: var(--bad-bg); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 14px 16px; }
.card + .card { margin-top: 12px; } .grid2 .card + .card { margin-top: 0; }
.tile b { display: block; font-size: 30px; line-height: 1.2; color: var(--own);
  font-variant-numeric: tabular-nums; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 14px;
  margin-top: 12px; }
@media (max-width: 560px) { .grid2 { grid-template-columns: 1fr; } }
svg { width: 100%; height: auto; display: block; font-size: 12.5px; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .own { fill: var(--own); } svg .peer { fill: var(--peer); }
svg .own-label { font-weight: 650; fill: var(--own); }
svg .note, svg .axis { fill: var(--soft); }
svg .whisker { stroke: var(--soft); fill: none; }
svg .grid { stroke: var(--rule); fill: none; } svg .axis { font-size: 11.5px; }
svg .line { fill: none; stroke-width: 2; } svg .own-line { stroke: var(--own); stroke-width: 3; }
svg .own-line-dot { fill: var(--own); } svg .own-line-text { fill: var(--own); font-weight: 650; }
svg .line-0 { stroke: var(--l0); } svg .line-0-dot, svg .line-0-text { fill: var(--l0); }
svg .line-1 { stroke: var(--l1); } svg .line-1-dot, svg .line-1-text { fill: var(--l1); }
svg .line-2 { stroke: var(--l2); } svg .line-2-dot, svg .line-2-text { fill: var(--l2); }
svg .line-3 { stroke: var(--l3); } svg .line-3-dot, svg .line-3-text { fill: var(--l3); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; margin-top: 8px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--rule); }
td { border-bottom: 1px solid var(--rule); vertical-align: top; }
th, td { padding: 5px 10px 5px 0; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
td.num { white-space: nowrap; }
tr.mine td { color: var(--own); font-weight: 600; }
mark { background: var(--bad-bg); color: var(--bad); border-radius: 3px; padding: 0 2px; }
details > summary { cursor: pointer; margin-top: 40px; font-size: 19px; font-weight: 700; }
@media print { main { max-width: none; } .card, .tile { break-inside: avoid; } }
"""


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


def html_table(table: Table) -> str:
    """A table; figures align right, and rows of `mine` are stressed."""
    numeric = range(table.words, len(table.head) - table.notes)

    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{RIGHT if i in numeric else ''}>"
            f"{value if isinstance(value, Html) else escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    lines = [
        f"<tr{MINE if table.mine and table.mine[i] else ''}>{cells(row, 'td')}</tr>"
        for i, row in enumerate(table.rows)
    ]
    top = f"<thead><tr>{cells(table.head, 'th')}</tr></thead>" if any(table.head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def table_card(table: Table) -> str:
    """A table in a box; nothing without rows."""
    return card(table.title, html_table(table)) if table.rows else ""


def table_section(table: Table) -> str:
    """A table as a section of its own; nothing without rows."""
    return section(table.title, table.lead, html_table(table) if table.rows else "")


def grid(cards: Sequence[str]) -> str:
    """Cards side by side where there is room; nothing without cards."""
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with a line of HTML below; nothing without figures."""
    boxes = "".join(f'<div class="tile"><b>{value}</b>{text}</div>' for value, text in figures)
    return f'<div class="tiles">{boxes}</div>' if boxes else ""
