"""The server beside the engine called directly, a plain FastAPI server and LitServe, in one run."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.harness.timing import run_threads
from amlr.benchmarks.serving.client import Tally, Triples, closed_loop, request_bytes
from amlr.benchmarks.serving.processes import (
    load_options,
    machine_cpu_s,
    read_posts,
    running,
    triples,
)
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post
from amlr.runtime.cpu import usable_cores

_BATCH = 16
_HERE = "amlr.benchmarks.serving"


@contextmanager
def cores_used(row: dict[str, Any], server_cpu_s: Callable[[], float] | None) -> Iterator[None]:
    """Note who kept how many cores busy: the engine's process, the load generator, others.

    The load generator runs on the same cores but not in the server's process, so its CPU time is
    no part of `cpu_ms_per_post`. `others` above a few hundredths: the machine was not quiet, and
    posts per second do not compare.
    """
    engine_cpu_s = server_cpu_s or time.process_time
    begun = time.perf_counter()
    before = engine_cpu_s(), time.process_time(), machine_cpu_s()
    yield
    duration = time.perf_counter() - begun
    engine, client = engine_cpu_s() - before[0], time.process_time() - before[1]
    if server_cpu_s is None:
        client = 0.0
    others = max(0.0, machine_cpu_s() - before[2] - engine - client)
    row["cpu_ms_per_post"] = round(1000 * engine / max(1, row.pop("answered")), 2)
    row["cores"] = {
        "engine": round(engine / duration, 2),
        "load": round(client / duration, 2),
        "others": round(others / duration, 2),
    }


def direct(engine: Engine, posts: list[Post], workers: int, seconds: float) -> dict[str, Any]:
    """Full batches without a server, `workers` calls at a time."""
    # Never the same batch twice, as in service: some engines are slower on shapes they never saw.
    state, lock = random.Random(0), threading.Lock()

    def call(_: int) -> int:
        with lock:
            batch = state.sample(posts, _BATCH)
        return len(engine.tag_batch(batch))

    row: dict[str, Any] = {}
    with cores_used(row, None):
        row["answered"], took_s = run_threads(call, workers, seconds)
        row["posts_per_s"] = round(row["answered"] / took_s, 2)
    return row


def measured(
    module: str,
    arguments: list[str],
    posts: list[Post],
    expected: list[Triples],
    clients: int,
    seconds: float,
) -> dict[str, Any]:
    """Throughput and latency of one server."""
    requests = [request_bytes(post) for post in posts]
    with running(module, arguments) as server:
        warm = Tally(expected)
        asyncio.run(closed_loop(server.port, requests, clients=clients, seconds=3.0, take=warm.add))
        tally, row = Tally(expected), dict[str, Any]()
        with cores_used(row, lambda: server.cpu_s):
            duration = asyncio.run(
                closed_loop(server.port, requests, clients=clients, seconds=seconds, take=tally.add)
            )
            row["answered"] = len(tally.seconds)
        return tally.to_dict(duration) | row | {"rss_mib": round(server.memory_mib)}


@click.command(cls=AmlrCommand)
@load_options(512)
@click.option("--clients", default=32, show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="For each server.")
@click.option("--rounds", default=2, show_default=True, help="Servers take turns; the best counts.")
@click.option("--workers", type=int, help="Of amlr-serve and of the direct calls; default: cores.")
@click.option("--provider", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
def main(
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
    out: Path | None,
) -> None:
    """Measure all, print a table.

    Posts per second need a quiet machine; CPU time per post also compares fairly on a busy one.
    """
    cores = usable_cores()
    workers = workers or cores
    posts = read_posts(posts_file, images, count)
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        with Engine.load(bundle, provider, precision, max(1, cores // workers)) as engine:
            # What was chosen first is what all are asked for: several tiers may be nearly as fast.
            provider, precision = engine.provider, engine.precision
            expected = triples(engine, posts)  # also fills the picture cache
            direct(engine, posts, workers, 3.0)
            _keep(rows, "direct", direct(engine, posts, workers, seconds))
        common = ["--engine", str(bundle), "--threads", str(max(1, cores // workers))]
        common += ["--provider", provider, "--precision", precision]
        own = [*common, "--workers", str(workers)]
        for name, module, arguments in (
            ("amlr-serve", "amlr.serving", own),
            ("plain FastAPI", f"{_HERE}.servers", ["--kind", "plain", *common]),
            ("LitServe", f"{_HERE}.litserve_server", own),
        ):
            if name == "LitServe" and find_spec("litserve") is None:
                click.echo("LitServe is left out; pip install litserve", err=True)
                continue
            _keep(rows, name, measured(module, arguments, posts, expected, clients, seconds))
    click.echo(f"all by {provider}, {precision}")
    reference = rows["direct"]
    for name, row in rows.items():
        row["of_direct"] = round(row["posts_per_s"] / reference["posts_per_s"], 3)
        row["of_direct_by_cpu"] = round(reference["cpu_ms_per_post"] / row["cpu_ms_per_post"], 3)
        click.echo(f"{name:14} {json.dumps(row)}")
    if out:
        told = {"cores": cores, "workers": workers, "provider": provider, "precision": precision}
        out.write_text(json.dumps({**told, "rows": rows}, indent=1))


def _keep(rows: dict[str, dict[str, Any]], name: str, row: dict[str, Any]) -> None:
    click.echo(f"{name:14} {json.dumps(row)}")
    if name not in rows or row["posts_per_s"] > rows[name]["posts_per_s"]:
        rows[name] = row


if __name__ == "__main__":
    main()
