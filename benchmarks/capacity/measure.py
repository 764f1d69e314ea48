"""Measure the cost grid: engines in processes of their own, each on a core of its own.

As many are busy at a time as will be in service, because cores share caches and memory. The
server's own part is measured on a real server around an engine that answers at once.
"""

import asyncio
import itertools
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from amlr.benchmarks.capacity.costs import STATES, CostGrid
from amlr.benchmarks.load.client import Reply, closed_loop, request_bytes
from amlr.benchmarks.load.server import running
from amlr.cli_support import progress
from amlr.runtime import Engine, Post
from amlr.serving.warmup import picture, sample_text

BATCHES = (1, 4, 16)
# The first one warms up.
_REPEATS = 6
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What is measured, and later served.

    Attributes:
        bundle: Folder of the bundle.
        provider: As for `Engine.load`.
        precision: As for `Engine.load`.
    """

    bundle: Path
    provider: str = "auto"
    precision: str = "auto"

    @property
    def options(self) -> list[str]:
        """The same as options of `amlr-serve`."""
        named = {"engine": self.bundle, "provider": self.provider, "precision": self.precision}
        return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def grid_tokens(tokens: Sequence[int]) -> tuple[int, ...]:
    """Lengths to measure for texts of these lengths: the ends, and two between."""
    low, high = min(tokens), max(*tokens, min(tokens) + 8)
    return tuple(sorted({round(low + (high - low) * part) for part in (0.0, 0.33, 0.67, 1.0)}))


def measure_grid(
    choice: EngineChoice, tokens: Sequence[int], batch_posts: int, processes: int
) -> CostGrid:
    """Measure everything the simulator needs, on this machine.

    Args:
        choice: What to measure.
        tokens: Lengths of texts in the traffic.
        batch_posts: Posts of a full batch.
        processes: Engines that are busy at a time.

    Raises:
        AmlrError: The engine could not be loaded.
    """
    lengths = grid_tokens(tokens)
    batches = tuple(sorted({*(b for b in BATCHES if b < batch_posts), max(2, batch_posts)}))
    kinds = list(itertools.product(STATES, lengths, batches))
    _log.info(f"measuring {len(kinds)} kinds of batches on {processes} core(s)")
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = [
            ProcessPoolExecutor(1, context, os.sched_setaffinity, (0, {cores[i % len(cores)]}))
            for i in range(processes)
        ]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        calls = [
            pool.submit(_batch_s, choice, *kind)
            for _ in range(_REPEATS)
            for kind in kinds
            for pool in pools
        ]
        for call in progress(as_completed(calls), "batches", len(calls)):
            call.result()  # the first failure ends it all
        provider, precision, picture_bytes = pools[0].submit(_described, choice).result()
    samples = np.array([call.result() for call in calls])
    by_repeat = samples.reshape(_REPEATS, len(kinds), processes)[1:]
    seconds = np.median(by_repeat, axis=0).mean(axis=1)
    _log.info("measuring the server around the engine")
    plain, with_picture = asyncio.run(_server_costs())
    return CostGrid(
        tokens=lengths,
        batches=batches,
        seconds=seconds.reshape(len(STATES), len(lengths), len(batches)),
        request_s=plain,
        request_image_s=max(0.0, with_picture - plain),
        picture_bytes=picture_bytes,
        provider=provider,
        precision=precision,
    )


class _Subject:
    """The engine of a measuring process, and pictures for it."""

    def __init__(self, choice: EngineChoice) -> None:
        self.engine = Engine.load(choice.bundle, choice.provider, choice.precision, threads=1)
        self.source = random.Random(1)
        self.known: list[bytes] = []

    def pictures(self, state: str, count: int) -> list[bytes] | list[None]:
        """Pictures of a batch in one of `STATES`."""
        if state == "none":
            return [None] * count
        if state == "cold":
            return [picture(self.source) for _ in range(count)]
        if count > len(self.known):
            self.known += [picture(self.source) for _ in range(count - len(self.known))]
            self.engine.tag_batch([Post("Paris", image) for image in self.known])
        return self.known[:count]


@cache
def _subject(choice: EngineChoice) -> _Subject:
    return _Subject(choice)


def _batch_s(choice: EngineChoice, state: str, tokens: int, posts: int) -> float:
    """Seconds of one batch; runs in a measuring process."""
    subject, text = _subject(choice), sample_text(tokens)
    batch = [Post(text, image) for image in subject.pictures(state, posts)]
    begun = time.perf_counter()
    subject.engine.tag_batch(batch)
    return time.perf_counter() - begun


def _described(choice: EngineChoice) -> tuple[str, str, float]:
    """Provider and precision that were chosen, and what a picture takes in the cache."""
    engine = _subject(choice).engine
    stats = engine.image_cache
    return engine.provider, engine.precision, stats.bytes / max(1, stats.entries)


async def _server_costs() -> tuple[float, float]:
    """CPU seconds of the server for a request without and with a picture, its engine idle."""
    source = random.Random(0)
    text = sample_text(32)
    costs = []
    with running("amlr.benchmarks.load.peers", ["--kind", "idle"]) as server:
        for post in (Post(text), Post(text, picture(source))):
            requests = [request_bytes(post)]
            await closed_loop(server.port, requests, clients=4, seconds=0.5, take=lambda _: None)
            answered: list[Reply] = []
            before = server.cpu_s
            await closed_loop(server.port, requests, clients=4, seconds=2.0, take=answered.append)
            costs.append((server.cpu_s - before) / max(1, len(answered)))
    return costs[0], costs[1]
