"""Measure the cost grid: engines in processes of their own, each on a core of its own.

As many are busy at a time as will be in service, because cores share caches and memory. The
server's own part is measured on a real server around an engine that answers at once.
"""

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amlr.benchmarks.capacity.costs import STATES, CostGrid
from amlr.benchmarks.load.client import Reply, closed_loop, request_bytes
from amlr.benchmarks.load.server import running
from amlr.benchmarks.process import Remote, affinity
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
    with ExitStack() as stack:
        remotes = []
        for number in range(processes):
            with affinity([cores[number % len(cores)]]):
                remotes.append(stack.enter_context(Remote(Subject, os.environ)))
        together(remotes, "load", choice)
        samples = [
            together(remotes, "batch_s", *kind) for kind in progress(_REPEATS * kinds, "batches")
        ]
        provider, precision, picture_bytes = remotes[0].call("described")
    by_repeat = np.array(samples).reshape(_REPEATS, len(kinds), processes)[1:]
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


def together(remotes: Sequence[Remote], method: str, *arguments: Any) -> list[Any]:
    """What a call gives in each of some processes, which compute at the same time."""
    for remote in remotes:
        remote.send(method, *arguments)
    return [remote.receive() for remote in remotes]


class Subject:
    """The engine of a measuring process, and pictures for it."""

    def load(self, choice: EngineChoice) -> None:
        """Open the engine."""
        self._engine = Engine.load(choice.bundle, choice.provider, choice.precision, threads=1)
        self._source = random.Random(1)
        self._known: list[bytes] = []

    def batch_s(self, state: str, tokens: int, posts: int) -> float:
        """Seconds of one batch of equal posts."""
        text = sample_text(tokens)
        batch = [Post(text, image) for image in self._pictures(state, posts)]
        begun = time.perf_counter()
        self._engine.tag_batch(batch)
        return time.perf_counter() - begun

    def _pictures(self, state: str, count: int) -> list[bytes] | list[None]:
        """Pictures of a batch in one of `STATES`."""
        if state == "none":
            return [None] * count
        if state == "cold":
            return [picture(self._source) for _ in range(count)]
        if count > len(self._known):
            self._known += [picture(self._source) for _ in range(count - len(self._known))]
            self._engine.tag_batch([Post("Paris", image) for image in self._known])
        return self._known[:count]

    def described(self) -> tuple[str, str, float]:
        """Provider and precision that were chosen, and what a picture takes in the cache."""
        engine = self._engine
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
