"""Tables of a run: `python -m amlr.benchmarks.gpu.report results.jsonl > report.md`.

`--svg FILE` draws milliseconds by batch size instead.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amlr.benchmarks.gpu.run import Row, read_rows
from amlr.benchmarks.report.figures import Table

# The step and the card stand above the tables.
_HIDDEN = ("step", "kind", "card", "device", "failed")
# What the picture shows: more lines would hide one another.
_DRAWN = {"eager": "tab:gray", "plain": "tab:blue", "captured": "tab:orange",
          "engine": "tab:red"}  # fmt: skip
# Milliseconds of one batch: what runs, then system, then batch size.
Speed = dict[str, dict[str, dict[int, Row]]]


def markdown(rows: Sequence[Row]) -> str:
    """All rows of the file as one page; of several runs each step's rows follow one another."""
    return "\n".join(["# amlr on a GPU", "", *_cards(rows), *_steps(rows), *speed_tables(rows),
                      *_tables(rows)]) + "\n"  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """The last run in short: how its steps ended, what failed or could not run, and speed."""
    starts = [i for i, row in enumerate(rows) if row.get("kind") == "start"]
    last = rows[starts[-1] :] if starts else rows
    problems = [
        f"{row['step']}: {row.get('failed') or row.get('not_run')}"
        for row in last
        if row.get("kind") == "row" and (row.get("failed") or row.get("not_run"))
    ]
    return "\n".join([*_cards(last), *_steps(last), "", *problems, *speed_tables(last)])


def _cards(rows: Sequence[Row]) -> list[str]:
    cards = sorted({str(row["card"]) for row in rows if row.get("card")})
    return [f"Card: {', '.join(cards) or 'unknown'}", ""]


def _by_step(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    data = [row for row in rows if row.get("kind") == "row"]
    order = list(dict.fromkeys(row["step"] for row in data))
    for step in order:
        yield step, [row for row in data if row["step"] == step]


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    names = ("step", "status", "seconds", "reason")
    ends = [row for row in rows if row.get("kind") == "end" and row["step"] != "run"]
    yield from ("## Steps", "", _table(names, ends))


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for step, group in _by_step(rows):
        yield from ("", f"## {step}")
        for table in _by_first_column(group):
            names = dict.fromkeys(n for row in table for n in row if n not in _HIDDEN)
            yield from ("", _table(list(names), table))


def _by_first_column(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that begin with the same column are one table."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(next((n for n in row if n not in _HIDDEN), ""), []).append(row)
    return list(tables.values())


def _table(names: Sequence[str], rows: Sequence[Row]) -> str:
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return Table(head=names, rows=cells, words=len(names)).markdown()


def speed(rows: Sequence[Row]) -> Speed:
    """The timed rows of PyTorch, onnxruntime and the engine; of several runs the last."""
    timed: Speed = {}
    for row in rows:
        if "host_ms" in row and "mode" in row:
            precision = (row.get("variant") or row["precision"]).removesuffix("-cuda")
            system = f"{precision} {row['mode']}"
            timed.setdefault(row["what"], {}).setdefault(system, {})[row["batch"]] = row
    return {what: dict(sorted(systems.items())) for what, systems in timed.items()}


def speed_tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table for texts, pictures and both: device and host milliseconds by batch size."""
    for what, systems in speed(rows).items():
        batches = sorted({batch for by_batch in systems.values() for batch in by_batch})
        head = ["system", *(f"B = {batch}" for batch in batches)]
        cells = [
            [system, *(_milliseconds(by_batch.get(batch)) for batch in batches)]
            for system, by_batch in systems.items()
        ]
        table = Table(head=head, rows=cells, words=len(head))
        yield from ("", f"## {what}: device / host ms", "", table.markdown())


def _milliseconds(row: Row | None) -> str:
    if row is None:
        return ""
    # The engine's time on the device is unknown in a dry run.
    times = (row["device_ms"], row["host_ms"])
    return " / ".join(f"{time:.2f}" if time != "" else "-" for time in times)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Host milliseconds of one batch by batch size, a panel for texts and one for pictures.

    Raises:
        ValueError: Nothing was timed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    timed = speed(rows)
    if not timed:
        raise ValueError("no row has a mode and host_ms: nothing was timed")
    # The same file for the same rows: ids from a seed, no date, texts as texts.
    with mpl.rc_context({"svg.hashsalt": "amlr", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, what in ((left, "text+fusion"), (right, "image")):
            systems = timed.get(what, {})
            for system, by_batch in systems.items():
                precision, _, mode = system.rpartition(" ")
                if mode not in _DRAWN:
                    continue
                batches = sorted(by_batch)
                times = [by_batch[batch]["host_ms"] for batch in batches]
                style = {"fp16": "-", "fp32": "--"}.get(precision, ":")
                axes.plot(batches, times, style, label=system, color=_DRAWN[mode], marker="o",
                          linewidth=2.6 if mode == "engine" else 1.4)  # fmt: skip
            axes.set(title=what, xlabel="batch size", xscale="log", yscale="log")
            axes.set_xticks(sorted({batch for by_batch in systems.values() for batch in by_batch}))
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        left.set_ylabel("ms a batch, host clock")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{name}={_cell(item)}" for name, item in value.items())
    return str(value).replace("\n", " ").replace("|", "/")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--svg", type=Path, help="draw there instead of printing tables")
    args = parser.parse_args()
    if not args.results.is_file():
        raise SystemExit(f"no results at {args.results}; run python -m amlr.benchmarks.gpu first")
    rows = read_rows(args.results)
    if not args.svg:
        sys.stdout.write(markdown(rows))
        return
    try:
        draw(rows, args.svg)
    except ValueError as error:
        raise SystemExit(f"{args.results}: {error}") from error


if __name__ == "__main__":
    main()
