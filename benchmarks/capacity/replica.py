"""One server, simulated event by event, by the rules of `amlr.serving.queue` and `admission`.

A worker takes the oldest post and those of most similar length, at most its share; it waits for
company only while posts arrive more often than the longest wait. Work on arrival (HTTP, JSON)
shares the workers' cores, so it delays what they are computing.
"""

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.capacity.costs import CostGrid
from amlr.benchmarks.capacity.traffic import Replica
from amlr.serving.costs import CostModel
from amlr.serving.queue import GAP_MEMORY, LONGEST_GAP_S, LOOK_AHEAD, fair_share
from amlr.serving.settings import QueueSettings

_MARGIN = QueueSettings().margin


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of them.

    Attributes:
        latency_s: Of each request, NaN where it was refused, (N,).
        busy: Share of the workers' time that was spent computing.
        batch_posts: Mean size of a batch.
    """

    latency_s: npt.NDArray[np.float64]
    busy: float
    batch_posts: float

    @property
    def refused(self) -> float:
        """Share of the requests that were refused."""
        return float(np.isnan(self.latency_s).mean())

    def percentile_s(self, percent: float) -> float:
        """Latency of accepted requests; infinite where none was."""
        answered = self.latency_s[~np.isnan(self.latency_s)]
        return float(np.percentile(answered, percent)) if len(answered) else float("inf")


def simulate(
    arrivals: Arrivals,
    costs: CostGrid,
    replica: Replica,
    *,
    deadline_s: float = float("inf"),
    extra_s: float = 0.0,
) -> Outcome:
    """Run the requests through one server.

    Args:
        arrivals: The requests.
        costs: Measured costs.
        replica: Settings of the server.
        deadline_s: Of every request; those that are not expected to keep it are refused.
        extra_s: CPU time that something else on the same cores takes for each request, such as a
            load generator.
    """
    return _Run(arrivals, costs, replica, deadline_s, extra_s).run()


class _Run:
    def __init__(
        self, arrivals: Arrivals, costs: CostGrid, replica: Replica, deadline_s: float, extra: float
    ) -> None:
        self.costs, self.replica, self.deadline_s = costs, replica, deadline_s
        self.tokens, self.state = arrivals.tokens.tolist(), arrivals.state.tolist()
        picture = np.where(arrivals.state > 0, costs.request_image_s, 0.0)
        self.arrival = arrivals.at_s.tolist()
        self.handling = (costs.request_s + picture + extra).tolist()
        self.ready = (arrivals.at_s + np.array(self.handling)).tolist()
        self.latency = np.full(len(self.arrival), np.nan)
        self.queue: deque[int] = deque()
        self.next = 0
        self.gap_s, self.last_put = LONGEST_GAP_S, 0.0
        self.waiting_s = self.busy_s = 0.0
        self.batches = self.taken = 0
        # (begin, end, expected cost) of what the workers are doing.
        self.running: list[tuple[float, float, float]] = []
        # The server's own expectations and their running correction decide what it refuses.
        self.model = CostModel(costs.server_table(replica.batch_posts, replica.workers))
        self.cost = [
            self.model.post_s(t, has_image=s > 0)
            for t, s in zip(self.tokens, self.state, strict=True)
        ]

    def run(self) -> Outcome:
        free = [0.0] * self.replica.workers
        heapq.heapify(free)
        while self.next < len(self.arrival) or self.queue:
            now = heapq.heappop(free)
            self._absorb(now)
            while not self.queue and self.next < len(self.arrival):
                now = max(now, self.ready[self.next])
                self._absorb(now)
            if not self.queue:
                break
            now = self._company(now)
            end = self._serve(now)
            heapq.heappush(free, end)
        span = max(max(free, default=0.0), self.arrival[-1] if self.arrival else 0.0) or 1.0
        return Outcome(
            latency_s=self.latency,
            busy=self.busy_s / (span * self.replica.workers),
            batch_posts=self.taken / max(1, self.batches),
        )

    def _absorb(self, now: float) -> None:
        while self.next < len(self.arrival) and self.ready[self.next] <= now:
            job, self.next = self.next, self.next + 1
            at = self.ready[job]
            self.gap_s += GAP_MEMORY * (min(LONGEST_GAP_S, at - self.last_put) - self.gap_s)
            self.last_put = at
            under_way = sum(
                max(0.0, cost - (at - begun) / self.replica.workers)
                for begun, end, cost in self.running
                if end > at
            )
            own = self.model.batch_s([self.tokens[job]], int(self.state[job] > 0))
            expected = self.model.cautious * (self.waiting_s + under_way) + own
            if expected * _MARGIN > self.deadline_s:
                continue
            self.queue.append(job)
            self.waiting_s += self.cost[job]

    def _company(self, now: float) -> float:
        """Wait for more posts as the queue does; the time at which the batch is formed."""
        wait_s = self.replica.wait_ms / 1000
        while self.gap_s < wait_s and not self._is_full() and self.next < len(self.arrival):
            end: float = self.ready[self.queue[0]] + wait_s
            if end <= now:
                break
            if self.ready[self.next] > end:
                return end
            now = max(now, self.ready[self.next])
            self._absorb(now)
        return now

    def _is_full(self) -> bool:
        return (
            len(self.queue) >= self.replica.batch_posts
            or sum(self.tokens[job] for job in self.queue) >= self.replica.batch_tokens
        )

    def _form(self) -> list[int]:
        window = min(len(self.queue), LOOK_AHEAD * self.replica.batch_posts)
        oldest = self.queue[0]
        near = sorted(
            range(1, window),
            key=lambda i: (abs(self.tokens[self.queue[i]] - self.tokens[oldest]), i),
        )
        chosen, total = [0], self.tokens[oldest]
        most = fair_share(len(self.queue), self.replica.workers, self.replica.batch_posts)
        for index in near:
            size = self.tokens[self.queue[index]]
            if len(chosen) >= most or total + size > self.replica.batch_tokens:
                break
            chosen.append(index)
            total += size
        batch = [self.queue[i] for i in chosen]
        gone = set(batch)
        self.queue = deque(job for job in self.queue if job not in gone)
        return batch

    def _serve(self, now: float) -> float:
        formed = self._form()
        self.waiting_s = max(0.0, self.waiting_s - sum(self.cost[job] for job in formed))
        images = sum(self.state[job] > 0 for job in formed)
        late = now + self.model.batch_s([self.tokens[job] for job in formed], images)
        batch = [job for job in formed if late <= self.ready[job] + self.deadline_s]
        if not batch:
            return now
        states = [self.state[job] for job in batch]
        tokens = [self.tokens[job] for job in batch]
        seconds = self.costs.batch_s(tokens, states.count(1), states.count(2))
        end = now + seconds
        # Requests that arrive meanwhile are handled on the same cores.
        arriving = self.next
        while arriving < len(self.arrival) and self.arrival[arriving] < end:
            end += self.handling[arriving] / self.replica.workers
            arriving += 1
        self.busy_s += end - now
        self.batches += 1
        self.taken += len(batch)
        for job in batch:
            self.latency[job] = end - self.arrival[job]
        self.model.observe(tokens, sum(state > 0 for state in states), end - now)
        expected = sum(self.cost[job] for job in batch)
        self.running = [item for item in self.running if item[1] > now] + [(now, end, expected)]
        return end
