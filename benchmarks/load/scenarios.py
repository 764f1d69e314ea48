"""What is measured: the engine called directly, a server that is kept busy, one above capacity."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from amlr.benchmarks.harness.timing import run_threads
from amlr.benchmarks.load.client import Tally, Triples, closed_loop, open_loop, request_bytes
from amlr.benchmarks.load.server import ServerProcess, machine_cpu_s
from amlr.cli_support import progress
from amlr.runtime import Engine, Post

Row = dict[str, Any]
"""Figures of one measurement by name."""
_BATCH = 16


@contextmanager
def cores_used(row: Row, server_cpu_s: Callable[[], float] | None) -> Iterator[None]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Posts to send, and what to expect.

    Attributes:
        posts: Different posts, their pictures as bytes.
        expected: The engine's own entities of each.
        clients: Clients that ask at a time.
    """

    posts: Sequence[Post]
    expected: Sequence[Triples]
    clients: int

    def direct(self, engine: Engine, workers: int, seconds: float) -> Row:
        """Full batches without a server, `workers` calls at a time."""
        # Never the same batch twice, as in service: some engines are slower on unseen shapes.
        state, lock = random.Random(0), threading.Lock()

        def call(_: int) -> int:
            with lock:
                batch = state.sample(self.posts, min(_BATCH, len(self.posts)))
            return len(engine.tag_batch(batch))

        row: Row = {}
        with cores_used(row, None):
            row["answered"], took_s = run_threads(call, workers, seconds)
            row["posts_per_s"] = round(row["answered"] / took_s, 2)
        return row

    def busy(self, server: ServerProcess, seconds: float) -> Row:
        """Each client asks again as soon as it is answered."""
        requests = [request_bytes(post) for post in self.posts]
        run = partial(closed_loop, server.port, requests, clients=self.clients, seconds=seconds)
        return self._tallied(server, run)

    def overloaded(
        self, server: ServerProcess, rate_per_s: float, seconds: float, deadline_ms: int
    ) -> Row:
        """Requests with a deadline, at a rate that does not depend on the answers."""
        requests = [request_bytes(post, deadline_ms) for post in self.posts]
        at_s = [number / rate_per_s for number in range(int(rate_per_s * seconds))]
        run = partial(open_loop, [server.port], requests, at_s=progress(at_s, "requests"))
        row = self._tallied(server, run)
        return {"offered_per_s": round(rate_per_s, 2), "deadline_ms": deadline_ms} | row

    def _tallied(
        self, server: ServerProcess, run: Callable[..., Coroutine[None, None, float]]
    ) -> Row:
        """Figures of a server during a run, which hands on replies and returns its seconds."""
        tally, row, memory_mib = Tally(self.expected), Row(), server.memory_mib
        with cores_used(row, lambda: server.cpu_s):
            duration = asyncio.run(run(take=tally.add))
            row["answered"] = len(tally.seconds)
        row["rss_mib"] = {"before": round(memory_mib), "after": round(server.memory_mib)}
        return tally.to_dict(duration) | row
