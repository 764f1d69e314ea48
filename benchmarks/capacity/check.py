"""The simulation beside real servers: the same requests at the same times, at several loads."""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.fleet import capacity_per_s, mix
from amlr.benchmarks.capacity.replica import Arrivals, simulate
from amlr.benchmarks.capacity.traffic import Traffic
from amlr.benchmarks.harness.stats import percentile
from amlr.benchmarks.load.client import Connection, Reply, open_loop, request_bytes
from amlr.benchmarks.load.server import running
from amlr.errors import InputError
from amlr.runtime import Post
from amlr.serving.warmup import picture, sample_text

# Shares of the predicted capacity.
LEVELS = (0.4, 0.65, 0.85)
_KNOWN_PICTURES = 32
_log = logging.getLogger(__name__)
# Requests of the first seconds find a server whose running corrections have not settled.
_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One load, predicted and measured.

    Attributes:
        replicas: Servers.
        utilisation: Share of the predicted capacity.
        offered_per_s: Requests sent a second.
        predicted_per_s: Answers a second, simulated.
        measured_per_s: Answers a second of the real servers.
        predicted_p95_ms: Simulated 95th percentile; None below 20 answers.
        measured_p95_ms: Measured.
        refused: Measured share of 429.
        failed: Requests that got anything but 200 or 429.
    """

    replicas: int
    utilisation: float
    offered_per_s: float
    predicted_per_s: float
    measured_per_s: float
    predicted_p95_ms: float | None
    measured_p95_ms: float | None
    refused: float
    failed: int

    @property
    def throughput_error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_per_s / self.measured_per_s - 1

    @property
    def p95_error(self) -> float | None:
        """Predicted over measured, less one."""
        if self.predicted_p95_ms is None or self.measured_p95_ms is None:
            return None
        return self.predicted_p95_ms / self.measured_p95_ms - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the errors included."""
        errors = {"throughput_error": self.throughput_error, "p95_error": self.p95_error}
        return asdict(self) | errors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Schedule:
    """What is sent, when, to whom."""

    arrivals: Arrivals
    replica: npt.NDArray[np.int64]
    requests: list[bytes]
    warm: list[bytes]


def check_replicas(
    bundle: Path,
    traffic: Traffic,
    costs: CostGrid,
    hits: float,
    replicas: int,
    *,
    seconds: float = 30.0,
    engine_options: Sequence[str] = (),
) -> list[Check]:
    """Run real servers and the simulation on the same schedule.

    Args:
        bundle: Folder of the bundle.
        traffic: Lengths, pictures and settings of a server.
        costs: Measured with as many busy engines as `replicas`.
        hits: Share of the pictures that the servers know already.
        replicas: Servers, each on a core of its own.
        seconds: Length of each run.
        engine_options: `--provider` and `--precision` for the servers.

    Raises:
        InputError: Fewer cores than servers.
    """
    cores = sorted(os.sched_getaffinity(0))
    if replicas * traffic.replica.workers > len(cores):
        raise InputError(
            f"{replicas} replicas need {replicas * traffic.replica.workers} cores, "
            f"this process may use {len(cores)}"
        )
    replica = traffic.replica
    options = ["--engine", str(bundle), "--workers", str(replica.workers), "--threads", "1",
               "--wait-ms", str(replica.wait_ms), "--batch-posts", str(replica.batch_posts),
               "--batch-tokens", str(replica.batch_tokens), *engine_options]  # fmt: skip
    capacity = replicas * capacity_per_s(traffic, costs, hits)
    checks = []
    with contextlib.ExitStack() as stack:
        ports, used = [], 0
        for _ in range(replicas):
            own = cores[used : used + replica.workers]
            used += replica.workers
            with _affinity(own):
                ports.append(stack.enter_context(running("amlr.serving", options)).port)
        # The client takes the cores that are left; where none is, its time is the servers' loss.
        rest = cores[used:]
        with _affinity(rest or cores):
            for level in LEVELS:
                _log.info(f"{replicas} replica(s) at {level:.0%} of {capacity:.0f} posts/s")
                schedule = _plan(traffic, hits, level * capacity, seconds, replicas)
                measured = asyncio.run(_send(ports, schedule))
                share = 0.0 if rest else measured.client_s
                checks.append(_compare(traffic, costs, schedule, measured, level, replicas, share))
    return checks


@dataclass(slots=True, kw_only=True)
class _Measured:
    status: npt.NDArray[np.int64]
    latency_s: npt.NDArray[np.float64]
    span_s: float
    client_s: float


def _plan(traffic: Traffic, hits: float, rate: float, seconds: float, replicas: int) -> _Schedule:
    generator, source = np.random.default_rng(17), random.Random(17)
    count = max(20, int(rate * seconds))
    tokens, state = mix(traffic, hits, count, generator)
    known = [picture(source) for _ in range(_KNOWN_PICTURES)]
    deadline_ms = round(traffic.p99_ms)
    requests = []
    for length, kind in zip(tokens.tolist(), state.tolist(), strict=True):
        image = (None, source.choice(known), None)[kind] if kind != 2 else picture(source)
        requests.append(request_bytes(Post(sample_text(length), image), deadline_ms=deadline_ms))
    return _Schedule(
        arrivals=Arrivals(
            at_s=np.cumsum(generator.exponential(1 / rate, count)), tokens=tokens, state=state
        ),
        replica=generator.integers(0, replicas, count),
        requests=requests,
        warm=[request_bytes(Post("Paris", image)) for image in known],
    )


async def _send(ports: Sequence[int], schedule: _Schedule) -> _Measured:
    count = len(schedule.requests)
    status, latency = np.zeros(count, np.int64), np.full(count, np.nan)
    for port in ports:
        connection = Connection(port)
        for request in schedule.warm:
            await connection.ask(request)
        connection.close()

    def take(reply: Reply) -> None:
        status[reply.index], latency[reply.index] = reply.status, reply.seconds

    cpu = time.process_time()
    span_s = await open_loop(
        ports,
        schedule.requests,
        at_s=schedule.arrivals.at_s.tolist(),
        take=take,
        server=schedule.replica.tolist(),
    )
    client_s = (time.process_time() - cpu) / count
    return _Measured(status=status, latency_s=latency, span_s=span_s, client_s=client_s)


def _compare(
    traffic: Traffic,
    costs: CostGrid,
    schedule: _Schedule,
    measured: _Measured,
    level: float,
    replicas: int,
    client_s: float,
) -> Check:
    arrivals = schedule.arrivals
    predicted = np.full(len(arrivals.at_s), np.nan)
    for place in range(replicas):
        mine = schedule.replica == place
        predicted[mine] = simulate(
            Arrivals(
                at_s=arrivals.at_s[mine], tokens=arrivals.tokens[mine], state=arrivals.state[mine]
            ),
            costs,
            traffic.replica,
            deadline_s=traffic.p99_ms / 1000,
            extra_s=client_s,
        ).latency_s
    counted = arrivals.at_s > min(_SETTLE_S, arrivals.at_s[-1] / 4)
    answered = counted & (measured.status == 200)
    foreseen = counted & ~np.isnan(predicted)
    end = np.nanmax(np.append(arrivals.at_s + np.nan_to_num(predicted), arrivals.at_s[-1]))
    return Check(
        replicas=replicas,
        utilisation=level,
        offered_per_s=len(predicted) / float(arrivals.at_s[-1]),
        predicted_per_s=float((~np.isnan(predicted)).sum() / end),
        measured_per_s=float((measured.status == 200).sum() / measured.span_s),
        predicted_p95_ms=_p95_ms(predicted[foreseen]),
        measured_p95_ms=_p95_ms(measured.latency_s[answered]),
        refused=float((measured.status == 429).mean()),
        failed=int((~np.isin(measured.status, (200, 429))).sum()),
    )


def _p95_ms(seconds: npt.NDArray[np.float64]) -> float | None:
    value = percentile(seconds, 95)
    return None if value is None else 1000 * value


@contextlib.contextmanager
def _affinity(cores: Sequence[int]) -> Iterator[None]:
    """Run on these cores; processes started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
