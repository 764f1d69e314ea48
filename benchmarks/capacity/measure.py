"""Measure the cost grid: engines in processes of their own, each on a core of its own.

As many are busy at a time as will be in service, because cores share caches and memory. The
server's own part is measured on a real server around an engine that answers at once.
"""

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from amlr.benchmarks.capacity.costs import STATES, CostGrid
from amlr.benchmarks.harness.process import thread_variables
from amlr.benchmarks.harness.stats import median
from amlr.benchmarks.load.client import Reply, closed_loop, request_bytes
from amlr.benchmarks.load.server import running
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post
from amlr.serving.warmup import picture, sample_text

BATCHES = (1, 4, 16)
_REPEATS = 5
_log = logging.getLogger(__name__)
_SERVERS = "amlr.benchmarks.load.peers"


def grid_tokens(tokens: Sequence[int]) -> tuple[int, ...]:
    """Lengths to measure for texts of these lengths: the ends, and two between."""
    low, high = min(tokens), max(*tokens, min(tokens) + 8)
    return tuple(sorted({round(low + (high - low) * part) for part in (0.0, 0.33, 0.67, 1.0)}))


def measure_grid(
    bundle: Path,
    tokens: Sequence[int],
    batch_posts: int,
    processes: int,
    engine_options: Sequence[str] = (),
) -> CostGrid:
    """Measure everything the simulator needs, on this machine.

    Raises:
        RuntimeError: A measuring process failed.
    """
    lengths = grid_tokens(tokens)
    batches = tuple(sorted({*(b for b in BATCHES if b < batch_posts), max(2, batch_posts)}))
    kinds = len(STATES) * len(lengths) * len(batches)
    _log.info(f"measuring {kinds} kinds of batches on {processes} core(s)")
    command = [sys.executable, "-m", "amlr.benchmarks.capacity.measure", "--engine", str(bundle),
               "--tokens", ",".join(map(str, lengths)), "--batches", ",".join(map(str, batches)),
               *engine_options]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    children = [
        subprocess.Popen(
            [*command, "--core", str(cores[i % len(cores)] if cores else -1)],
            stdout=subprocess.PIPE,
            env=os.environ | thread_variables(1),
        )
        for i in range(processes)
    ]
    answers = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("measuring the engine failed; its message is above")
    found = [json.loads(answer) for answer in answers]
    _log.info("measuring the server around the engine")
    plain, with_picture = asyncio.run(_server_costs())
    return CostGrid(
        tokens=lengths,
        batches=batches,
        seconds=np.mean([np.array(item["seconds"]) for item in found], axis=0),
        request_s=plain,
        request_image_s=max(0.0, with_picture - plain),
        picture_bytes=found[0]["picture_bytes"],
        provider=found[0]["provider"],
        precision=found[0]["precision"],
    )


async def _server_costs() -> tuple[float, float]:
    """CPU seconds of the server for a request without and with a picture, its engine idle."""
    source = random.Random(0)
    text = sample_text(32)
    kinds = [Post(text), Post(text, picture(source))]
    costs = []
    with running(_SERVERS, ["--kind", "idle"]) as server:
        for post in kinds:
            requests = [request_bytes(post)]
            await closed_loop(server.port, requests, clients=4, seconds=0.5, take=lambda _: None)
            answered: list[Reply] = []
            before = server.cpu_s
            await closed_loop(server.port, requests, clients=4, seconds=2.0, take=answered.append)
            costs.append((server.cpu_s - before) / max(1, len(answered)))
    return costs[0], costs[1]


def _measure(
    engine: Engine, lengths: Sequence[int], batches: Sequence[int]
) -> list[list[list[float]]]:
    """Median seconds of (state, tokens, batch), the repeats interleaved."""
    source = random.Random(1)
    known = [picture(source) for _ in range(max(batches))]
    engine.tag_batch([Post("Paris", image) for image in known])
    times: dict[tuple[int, int, int], list[float]] = {}
    for repeat in range(_REPEATS + 1):
        for state, name in enumerate(STATES):
            for row, length in enumerate(lengths):
                for column, batch in enumerate(batches):
                    text = sample_text(length)
                    images: list[bytes | None] = [None] * batch
                    if name != "none":
                        images = [
                            known[i] if name == "hit" else picture(source) for i in range(batch)
                        ]
                    posts = [Post(text, image) for image in images]
                    begun = time.perf_counter()
                    engine.tag_batch(posts)
                    if repeat:  # the first round warms up
                        cell = times.setdefault((state, row, column), [])
                        cell.append(time.perf_counter() - begun)
    return [
        [[median(times[s, t, b], 9) for b in range(len(batches))] for t in range(len(lengths))]
        for s in range(len(STATES))
    ]


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--tokens", required=True)
@click.option("--batches", required=True)
@click.option("--provider", default="auto")
@click.option("--precision", default="auto")
@click.option("--core", type=int, default=-1, help="Run on this core only.")
def main(bundle: Path, tokens: str, batches: str, provider: str, precision: str, core: int) -> None:
    """Measure one engine with one thread; JSON on stdout. Started by `measure_grid`."""
    if core >= 0:
        os.sched_setaffinity(0, {core})
    with Engine.load(bundle, provider=provider, precision=precision, threads=1) as engine:
        numbers = [[int(part) for part in text.split(",")] for text in (tokens, batches)]
        seconds = _measure(engine, numbers[0], numbers[1])
        stats = engine.image_cache
        click.echo(
            json.dumps(
                {
                    "seconds": seconds,
                    "picture_bytes": stats.bytes / max(1, stats.entries),
                    "provider": engine.provider,
                    "precision": engine.precision,
                }
            )
        )


if __name__ == "__main__":
    main()
