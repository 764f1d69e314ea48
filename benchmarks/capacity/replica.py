"""One server, simulated event by event with its own queue, admission and cost model.

Only the workers and the time are simulated. Work on arrival (HTTP, JSON) shares the workers' cores,
so it delays what they are computing.
"""

import contextlib
import heapq
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.traffic import Replica
from amlr.runtime import Post
from amlr.serving.costs import CHARS_PER_TOKEN, CostModel, estimate_tokens
from amlr.serving.jobs import Job, RefusedError, count_pictures
from amlr.serving.queue import Admission, JobQueue
from amlr.serving.settings import BatchSettings, QueueSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests of one post each.

    Attributes:
        at_s: Times, ascending, (N,).
        tokens: Estimated tokens, (N,).
        state: Index into `costs.STATES`, (N,).
    """

    at_s: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    state: npt.NDArray[np.int64]

    def chosen(self, is_chosen_n: npt.NDArray[np.bool_]) -> Self:
        """Some of them."""
        return replace(
            self,
            at_s=self.at_s[is_chosen_n],
            tokens=self.tokens[is_chosen_n],
            state=self.state[is_chosen_n],
        )


def simulate(
    arrivals: Arrivals,
    costs: CostGrid,
    replica: Replica,
    *,
    deadline_s: float = float("inf"),
    extra_s: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Run the requests through one server.

    Args:
        arrivals: The requests.
        costs: Measured costs.
        replica: Settings of the server.
        deadline_s: Of every request; those that are not expected to keep it are refused.
        extra_s: CPU time that something else on the same cores takes for each request, such as a
            load generator.

    Returns:
        Latency of each request in seconds, NaN where it was refused, (N,).
    """
    return _Run(arrivals, costs, replica, deadline_s, extra_s).run()


class _Run:
    """The server's own queue, admission and cost model, driven by a clock that jumps."""

    def __init__(
        self, arrivals: Arrivals, costs: CostGrid, replica: Replica, deadline_s: float, extra: float
    ) -> None:
        self.now = 0.0
        self.costs, self.workers, self.deadline_s = costs, replica.workers, deadline_s
        picture = np.where(arrivals.state > 0, costs.request_image_s, 0.0)
        handling = costs.request_s + picture + extra
        self.arrival, self.handling = arrivals.at_s.tolist(), handling.tolist()
        self.ready = (arrivals.at_s + handling).tolist()
        self.state = arrivals.state.tolist()
        self.posts = [
            Post(_text(tokens), b"picture" if state else None)
            for tokens, state in zip(arrivals.tokens.tolist(), self.state, strict=True)
        ]
        self.latency = np.full(len(self.arrival), np.nan)
        self.next = 0
        self.index: dict[Job, int] = {}
        # (begin, end, expected cost) of what the workers are doing.
        self.running: list[tuple[float, float, float]] = []
        self.model = CostModel(costs.server_table(replica.batch_posts, replica.workers))
        settings = QueueSettings()
        batch = BatchSettings(
            workers=replica.workers,
            max_wait_s=replica.wait_ms / 1000,
            max_posts=replica.batch_posts,
            max_tokens=replica.batch_tokens,
        )
        self.queue = JobQueue(settings, batch, clock=self._clock)
        self.admission = Admission(settings, self.model, self.queue, self._in_flight_s, self._clock)

    def _clock(self) -> float:
        return self.now

    def _in_flight_s(self) -> float:
        return sum(
            max(0.0, cost - (self.now - begun) / self.workers)
            for begun, end, cost in self.running
            if end > self.now
        )

    def run(self) -> npt.NDArray[np.float64]:
        free = [0.0] * self.workers
        while self.next < len(self.arrival) or len(self.queue):
            self._advance(heapq.heappop(free))
            while not len(self.queue) and self.next < len(self.arrival):
                self._advance(self.ready[self.next])
            while (end := self.queue.wait_end()) is not None and end > self.now:
                self._advance(min([end, *self.ready[self.next : self.next + 1]]))
            heapq.heappush(free, self._serve(self.queue.form()))
        return self.latency

    def _advance(self, to: float) -> None:
        """Let requests arrive until a time; the clock never goes back."""
        to = max(to, self.now)
        while self.next < len(self.arrival) and self.ready[self.next] <= to:
            self.now = max(self.now, self.ready[self.next])
            request, self.next = self.next, self.next + 1
            with contextlib.suppress(RefusedError):
                (job,) = self.admission.admit([self.posts[request]], self.deadline_s)
                self.index[job] = request
        self.now = to

    def _serve(self, formed: list[Job]) -> float:
        """Compute a batch as a worker does; when it ends."""
        late = self.now + self.model.batch_s([job.tokens for job in formed], count_pictures(formed))
        requests = [(job, self.index.pop(job)) for job in formed]
        requests = [(job, request) for job, request in requests if late <= job.deadline]
        if not requests:
            return self.now
        batch = [job for job, _ in requests]
        states = [self.state[request] for _, request in requests]
        tokens = [job.tokens for job in batch]
        end = self.now + self.costs.batch_s(tokens, states.count(1), states.count(2))
        # Requests that arrive meanwhile are handled on the same cores.
        arriving = self.next
        while arriving < len(self.arrival) and self.arrival[arriving] < end:
            end += self.handling[arriving] / self.workers
            arriving += 1
        for _, request in requests:
            self.latency[request] = end - self.arrival[request]
        self.model.observe(tokens, count_pictures(batch), end - self.now)
        self.running = [item for item in self.running if item[1] > self.now]
        self.running.append((self.now, end, sum(job.cost_s for job in batch)))
        return end


@cache
def _text(tokens: int) -> str:
    """A text that the server estimates at so many tokens."""
    return "x" * round(CHARS_PER_TOKEN * (tokens - estimate_tokens("")))
