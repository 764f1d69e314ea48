"""`python -m amlr.benchmarks.load`: `amlr-serve` beside others, or above its capacity."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click

from amlr.benchmarks.data import in_memory, read_jsonl
from amlr.benchmarks.load.scenarios import Load, Row
from amlr.benchmarks.load.server import running
from amlr.cli_support import AmlrCommand
from amlr.errors import AmlrError
from amlr.runtime import Engine
from amlr.runtime.cpu import usable_cores

_PATH, _COUNT = click.Path(path_type=Path), click.IntRange(1)
_WARM_S = 3.0


@click.command("load", cls=AmlrCommand)
@click.option("--engine", "bundle", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--posts", "posts_file", type=_PATH, required=True, help="JSON lines {text, image}.")
@click.option("--images", type=_PATH, required=True, help="Folder of the pictures.")
@click.option("--count", type=_COUNT, default=512, show_default=True, help="Different posts.")
@click.option("--clients", type=_COUNT, default=32, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="For each measurement.",
)
@click.option(
    "--rounds",
    type=_COUNT,
    default=2,
    show_default=True,
    help="Servers take turns; the best counts.",
)
@click.option(
    "--workers", type=_COUNT, help="Of amlr-serve and of the direct calls; default: cores."
)
@click.option("--provider", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option(
    "--overload",
    type=click.FloatRange(min=1),
    metavar="TIMES",
    help="amlr-serve alone: find the rate it sustains, then send so many times that.",
)
@click.option(
    "--deadline-ms", type=_COUNT, default=1000, show_default=True, help="Of --overload's requests."
)
@click.option("--json", "out", type=_PATH, help="Write the figures here.")
def load_command(
    bundle: Path,
    posts_file: Path,
    images: Path,
    count: int,
    clients: int,
    seconds: float,
    rounds: int,
    workers: int | None,
    provider: str,
    precision: str,
    overload: float | None,
    deadline_ms: int,
    out: Path | None,
) -> None:
    """Print status codes, posts a second, percentiles, processor time and memory as JSON.

    Every answer is compared with the engine's own. Posts per second need a quiet machine; CPU time
    per post also compares fairly on a busy one.
    """
    cores = usable_cores()
    workers = workers or cores
    threads = max(1, cores // workers)
    posts = [in_memory(item.post) for item in read_jsonl(posts_file, images, count).posts]
    with Engine.load(bundle, provider, precision, threads) as engine:
        # The first choice is what all are asked for: several tiers may be nearly as fast.
        tier = {"provider": engine.provider, "precision": engine.precision}
        expected = [  # tagging all posts also fills the picture cache
            [(e.start, e.end, e.label) for e in result.entities]
            for result in engine.tag_batch(posts)
        ]
        load = Load(posts=posts, expected=expected, clients=clients)
        common = ["--engine", str(bundle), "--threads", str(threads)]
        common += [word for name, value in tier.items() for word in (f"--{name}", value)]
        rows: dict[str, Row] = {}
        if overload:
            own = [*common, "--workers", str(workers)]
            measured = _overload(load, own, overload, seconds, deadline_ms)
        else:
            measured = _take_turns(load, engine, common, workers, seconds, rounds)
        for name, row in measured:
            click.echo(f"{name:14} {json.dumps(row)}")
            if name not in rows or row["posts_per_s"] > rows[name]["posts_per_s"]:
                rows[name] = row
    click.echo(f"all by {tier['provider']}, {tier['precision']}")
    if not overload:
        _compare_with_direct(rows)
    if out:
        told = {"cores": cores, "workers": workers, **tier, "rows": rows}
        out.write_text(json.dumps(told, indent=1))


def _overload(
    load: Load, arguments: list[str], times: float, seconds: float, deadline_ms: int
) -> Iterator[tuple[str, Row]]:
    """The rate that `amlr-serve` sustains, then a multiple of it."""
    with running("amlr.serving", arguments) as server:
        load.busy(server, _WARM_S)
        row = load.busy(server, min(20.0, seconds))
        yield "sustained", row
        rate = times * row["posts_per_s"]
        if not rate:
            raise AmlrError(f"amlr-serve answered nothing; statuses: {row['statuses']}")
        yield f"times {times:g}", load.overloaded(server, rate, seconds, deadline_ms)


def _take_turns(
    load: Load, engine: Engine, common: list[str], workers: int, seconds: float, rounds: int
) -> Iterator[tuple[str, Row]]:
    """The engine and each server, one after another, round by round."""
    own = [*common, "--workers", str(workers)]
    servers = {
        "amlr-serve": ("amlr.serving", own),
        "plain FastAPI": (f"{__package__}.peers", ["--kind", "plain", *common]),
        "LitServe": (f"{__package__}.litserve_peer", own),
    }
    if find_spec("litserve") is None:
        click.echo("LitServe is left out; pip install litserve", err=True)
        del servers["LitServe"]
    for _ in range(rounds):
        load.direct(engine, workers, _WARM_S)
        yield "direct", load.direct(engine, workers, seconds)
        for name, (module, arguments) in servers.items():
            with running(module, arguments) as server:
                load.busy(server, _WARM_S)
                yield name, load.busy(server, seconds)


def _compare_with_direct(rows: dict[str, Row]) -> None:
    reference = rows["direct"]
    for name, row in rows.items():
        row["of_direct"] = round(row["posts_per_s"] / reference["posts_per_s"], 3)
        row["of_direct_by_cpu"] = round(reference["cpu_ms_per_post"] / row["cpu_ms_per_post"], 3)
        click.echo(f"{name:14} {json.dumps(row)}")


if __name__ == "__main__":
    load_command(prog_name="python -m amlr.benchmarks.load")
