"""Tables of a run: `python -m amlr.benchmarks.gpu.report results.jsonl > report.md`."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from amlr.benchmarks.gpu.rows import Row, read_rows

# What identifies a row, in this order; the card stands above the tables.
_HIDDEN = ("step", "kind", "card", "failed")
# Left out of the short form: the same everywhere, or long.
_LONG = ("runs", "tokens", "first_s", "output", "lines", "slowest", "dry_run")
_CELL_CHARS = 60
# The device tool returns the last 12,000 characters of what was printed.
SUMMARY_CHARS = 11_000


def markdown(rows: Sequence[Row]) -> str:
    """All rows of the file as one page; of several runs each step's rows follow one another."""
    return "\n".join(["# amlr on a GPU", "", *_cards(rows), *_steps(rows), *_tables(rows)]) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """The last run in few characters: a line per step and per row."""
    starts = [i for i, row in enumerate(rows) if row.get("kind") == "start"]
    last = rows[starts[-1] :] if starts else rows
    lines = [*_cards(last)]
    for step, group in _by_step(last):
        lines.append(f"[{step}] {_ending(last, step)}")
        previous: tuple[str, ...] = ()
        for row in group:
            keys = tuple(name for name in row if name not in (*_HIDDEN, *_LONG))
            if keys != previous:
                lines.append("  " + " ".join(keys))
            previous = keys
            lines.append("  " + " ".join(_cell(row[name])[:_CELL_CHARS] for name in keys))
    lines += [f"[{step}] {_ending(last, step)}" for step in _without_rows(last)]
    text = "\n".join(lines)
    return text if len(text) <= SUMMARY_CHARS else text[:SUMMARY_CHARS] + "\n(cut; see the file)"


def _cards(rows: Sequence[Row]) -> list[str]:
    cards = sorted({str(row["card"]) for row in rows if row.get("card")})
    return [f"Card: {', '.join(cards) or 'unknown'}", ""]


def _by_step(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    data = [row for row in rows if row.get("kind") == "row"]
    order = list(dict.fromkeys(row["step"] for row in data))
    for step in order:
        yield step, [row for row in data if row["step"] == step]


def _without_rows(rows: Sequence[Row]) -> list[str]:
    seen = {row["step"] for row in rows if row.get("kind") == "row"}
    ends = [row["step"] for row in rows if row.get("kind") == "end" and row["step"] != "run"]
    return [step for step in dict.fromkeys(ends) if step not in seen]


def _ending(rows: Sequence[Row], step: str) -> str:
    ends = [row for row in rows if row["step"] == step and row.get("kind") == "end"]
    if not ends:
        return "never ended"
    end = ends[-1]
    reason = f": {end['reason'][:160]}" if end.get("reason") else ""
    return f"{end.get('status')}{reason} ({end.get('seconds')} s)"


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Steps"
    yield ""
    yield "| step | status | s | reason |"
    yield "|---|---|---|---|"
    for row in rows:
        if row.get("kind") == "end" and row["step"] != "run":
            yield f"| {row['step']} | {row['status']} | {row['seconds']} | {row['reason']} |"


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for step, group in _by_step(rows):
        yield ""
        yield f"## {step}"

        def columns(row: Row) -> tuple[str, ...]:
            return tuple(name for name in row if name not in _HIDDEN)

        for names, part in groupby(group, key=columns):
            yield ""
            yield f"| {' | '.join(names)} |"
            yield "|" + "---|" * len(names)
            for row in part:
                yield f"| {' | '.join(_cell(row[name]) for name in names)} |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{name}={_cell(item)}" for name, item in value.items())
    return str(value).replace("\n", " ").replace("|", "/")


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m amlr.benchmarks.gpu.report results.jsonl > report.md")
    path = Path(sys.argv[1])
    if not path.is_file():
        raise SystemExit(f"no results at {path}; run python -m amlr.benchmarks.gpu first")
    sys.stdout.write(markdown(read_rows(path)))


if __name__ == "__main__":
    main()
