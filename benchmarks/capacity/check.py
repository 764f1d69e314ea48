"""The simulation beside real servers: the same requests at the same times, at several loads."""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.costs import STATES, CostGrid
from amlr.benchmarks.capacity.fleet import capacity_per_s, draw_arrivals
from amlr.benchmarks.capacity.measure import EngineChoice
from amlr.benchmarks.capacity.replica import Arrivals, simulate
from amlr.benchmarks.capacity.traffic import Traffic
from amlr.benchmarks.harness.stats import percentile
from amlr.benchmarks.load.client import Connection, Reply, open_loop, request_bytes
from amlr.benchmarks.load.server import running
from amlr.benchmarks.process import affinity
from amlr.cli_support import progress
from amlr.errors import InputError
from amlr.runtime import Post
from amlr.serving.warmup import picture, sample_text

# Shares of the predicted capacity.
LEVELS = (0.4, 0.65, 0.85)
_KNOWN_PICTURES = 32
# Requests of the first seconds find a server whose running corrections have not settled.
_SETTLE_S = 3.0
_log = logging.getLogger(__name__)


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
class _Measured:
    """What real servers did.

    Attributes:
        status: HTTP status of each request, (N,).
        latency_s: Of each request, (N,).
        span_s: From the first request to the last answer.
        client_s: CPU time of this process for one request.
    """

    status: npt.NDArray[np.int64]
    latency_s: npt.NDArray[np.float64]
    span_s: float
    client_s: float


def check_replicas(
    engine: EngineChoice,
    traffic: Traffic,
    costs: CostGrid,
    hits: float,
    replicas: int,
    seconds: float,
) -> list[Check]:
    """Run real servers and the simulation on the same schedule.

    Args:
        engine: What to serve.
        traffic: Lengths, pictures and settings of a server.
        costs: Measured with as many busy engines as `replicas`.
        hits: Share of the pictures that the servers know already.
        replicas: Servers, each on cores of its own.
        seconds: Length of each run.

    Raises:
        InputError: Fewer cores than workers.
    """
    cores, replica = sorted(os.sched_getaffinity(0)), traffic.replica
    needed = replicas * replica.workers
    if needed > len(cores):
        raise InputError(
            f"{replicas} replicas need {needed} cores, this process may use {len(cores)}"
        )
    options = [*engine.options, "--workers", str(replica.workers), "--threads", "1",
               "--wait-ms", str(replica.wait_ms), "--batch-posts", str(replica.batch_posts),
               "--batch-tokens", str(replica.batch_tokens)]  # fmt: skip
    capacity = replicas * capacity_per_s(traffic, costs, hits)
    checks = []
    with contextlib.ExitStack() as stack:
        ports = []
        for first in range(0, needed, replica.workers):
            with affinity(cores[first : first + replica.workers]):
                ports.append(stack.enter_context(running("amlr.serving", options)).port)
        # The client takes the cores that are left; where none is, its time is the servers' loss.
        rest = cores[needed:]
        with affinity(rest or cores):
            for level in LEVELS:
                _log.info(f"{replicas} replica(s) at {level:.0%} of {capacity:.0f} posts/s")
                generator = np.random.default_rng(17)
                rate = level * capacity
                count = max(20, int(rate * seconds))
                arrivals = draw_arrivals(traffic, hits, rate, count, generator)
                server_n = generator.integers(0, replicas, count)
                measured = asyncio.run(_send(ports, traffic, arrivals, server_n))
                extra_s = 0.0 if rest else measured.client_s
                predicted_s = _predict(traffic, costs, arrivals, server_n, extra_s)
                checks.append(_compare(arrivals.at_s, predicted_s, measured, level, replicas))
    return checks


async def _send(
    ports: Sequence[int], traffic: Traffic, arrivals: Arrivals, server_n: npt.NDArray[np.int64]
) -> _Measured:
    """Teach every server the known pictures, then keep to the times."""
    source = random.Random(17)
    known = [picture(source) for _ in range(_KNOWN_PICTURES)]
    for port in ports:
        connection = Connection(port)
        for image in known:
            await connection.ask(request_bytes(Post("Paris", image)))
        connection.close()

    def request(tokens: int, state: str) -> bytes:
        image = None
        if state != "none":
            image = source.choice(known) if state == "hit" else picture(source)
        return request_bytes(Post(sample_text(tokens), image), round(traffic.p99_ms))

    posts = zip(arrivals.tokens.tolist(), arrivals.state.tolist(), strict=True)
    requests = [request(tokens, STATES[state]) for tokens, state in posts]
    status, latency_s = np.zeros(len(requests), np.int64), np.full(len(requests), np.nan)

    def take(reply: Reply) -> None:
        status[reply.index], latency_s[reply.index] = reply.status, reply.seconds

    cpu = time.process_time()
    span_s = await open_loop(
        ports,
        requests,
        at_s=progress(arrivals.at_s.tolist(), "requests"),
        take=take,
        server=server_n.tolist(),
    )
    client_s = (time.process_time() - cpu) / len(requests)
    return _Measured(status=status, latency_s=latency_s, span_s=span_s, client_s=client_s)


def _predict(
    traffic: Traffic,
    costs: CostGrid,
    arrivals: Arrivals,
    server_n: npt.NDArray[np.int64],
    extra_s: float,
) -> npt.NDArray[np.float64]:
    """Simulated latency of each request, NaN where it was refused, (N,)."""
    latency_s = np.full(len(server_n), np.nan)
    for server in np.unique(server_n):
        is_here = server_n == server
        latency_s[is_here] = simulate(
            arrivals.chosen(is_here),
            costs,
            traffic.replica,
            deadline_s=traffic.p99_ms / 1000,
            extra_s=extra_s,
        )
    return latency_s


def _compare(
    at_s: npt.NDArray[np.float64],
    predicted_s: npt.NDArray[np.float64],
    measured: _Measured,
    level: float,
    replicas: int,
) -> Check:
    is_counted = at_s > min(_SETTLE_S, at_s[-1] / 4)
    is_answered, is_predicted = measured.status == 200, ~np.isnan(predicted_s)
    end_s = max(float(at_s[-1]), float((at_s + predicted_s)[is_predicted].max(initial=0.0)))
    return Check(
        replicas=replicas,
        utilisation=level,
        offered_per_s=len(at_s) / float(at_s[-1]),
        predicted_per_s=float(is_predicted.sum() / end_s),
        measured_per_s=float(is_answered.sum() / measured.span_s),
        predicted_p95_ms=_p95_ms(predicted_s[is_counted & is_predicted]),
        measured_p95_ms=_p95_ms(measured.latency_s[is_counted & is_answered]),
        refused=float((measured.status == 429).mean()),
        failed=int((~np.isin(measured.status, (200, 429))).sum()),
    )


def _p95_ms(seconds: npt.NDArray[np.float64]) -> float | None:
    value = percentile(seconds, 95)
    return None if value is None else 1000 * value
