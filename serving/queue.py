"""The one queue in which posts of all requests wait, and the rule that makes batches of it.

The oldest post always goes first, so nothing starves; its batch mates are the posts of most similar
length among the next ones, so little is padded. A batch is no more than its worker's share of the
posts that wait, unless that would be very few: otherwise all of them are in one worker's hands and
the next worker that gets free has nothing to do.

Admission says no in time: work that cannot meet its deadline is refused before it is queued.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from amlr.runtime.results import Post
from amlr.serving.costs import CostModel, estimate_tokens
from amlr.serving.jobs import Job, RefusedError, count_pictures, post_bytes
from amlr.serving.settings import BatchSettings, QueueSettings

# How far past the oldest posts to look for batch mates of similar length, in full batches.
LOOK_AHEAD = 4
# From this size on, a batch leaves the other workers their share of what waits.
FEW_POSTS = 8
# Weight of one more time between puts in their running mean, and the longest that counts.
GAP_MEMORY = 0.2
LONGEST_GAP_S = 1.0


def fair_share(waiting: int, workers: int, max_posts: int) -> int:
    """Most posts that one worker takes of those that wait."""
    return min(max_posts, max(-(-waiting // workers), FEW_POSTS))


class JobQueue:
    """Bounded in posts and bytes; many threads may put and take."""

    def __init__(
        self,
        settings: QueueSettings,
        batch: BatchSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty, open queue.

        Args:
            settings: Bounds.
            batch: Bounds of a batch.
            clock: Seconds, as in `Job.submitted`; a simulation has its own, and calls `form` and
                `wait_end` instead of `take`.
        """
        self._settings, self._batch, self._clock = settings, batch, clock
        self._jobs: deque[Job] = deque()
        lock = threading.RLock()
        # Workers that wait for any post, and the one that waits for more posts to fill its batch:
        # waking a thread for every post that arrives would cost more than the waiting saves.
        self._changed, self._filled = threading.Condition(lock), threading.Condition(lock)
        self._collecting = False
        self._bytes = self._reserved = 0
        self._tokens = 0
        self._cost_s = 0.0
        self._closed = False
        self._last_put = clock()
        # Running mean of the time between puts; long at first, so the first post never waits.
        self._gap_s = LONGEST_GAP_S

    def __len__(self) -> int:
        """Posts waiting."""
        return len(self._jobs)

    @property
    def size_bytes(self) -> int:
        """Bytes of waiting posts and of bodies being received."""
        return self._bytes + self._reserved

    @property
    def cost_s(self) -> float:
        """Expected time of everything that waits, uncorrected."""
        return max(0.0, self._cost_s)

    @property
    def closed(self) -> bool:
        """Whether new posts are refused for good."""
        return self._closed

    def reserve(self, size: int) -> bool:
        """Count bytes of a body before they are read; False when there is no room."""
        with self._changed:
            if self._bytes + self._reserved + size > self._settings.max_bytes:
                return False
            self._reserved += size
            return True

    def release(self, size: int) -> None:
        """Give back what `reserve` counted."""
        with self._changed:
            self._reserved -= size

    def put(self, jobs: Sequence[Job]) -> None:
        """Add all jobs, or none.

        Raises:
            RefusedError: No room, or closed.
        """
        size = sum(job.size_bytes for job in jobs)
        with self._changed:
            if self._closed:
                raise RefusedError("stopping", "the server is stopping; ask another one", 1.0)
            if len(self._jobs) + len(jobs) > self._settings.max_posts:
                raise RefusedError(
                    "queue_full",
                    f"{len(self._jobs)} posts are waiting, at most "
                    f"{self._settings.max_posts} may; try again later",
                    self._cost_s,
                )
            if self._bytes + self._reserved + size > self._settings.max_bytes:
                raise RefusedError(
                    "bytes_full", "too many bytes are waiting; try again later", self._cost_s
                )
            now = self._clock()
            self._gap_s += GAP_MEMORY * (min(LONGEST_GAP_S, now - self._last_put) - self._gap_s)
            self._last_put = now
            for job in jobs:
                self._jobs.append(job)
                self._bytes += job.size_bytes
                self._tokens += job.tokens
                self._cost_s += job.cost_s
            if not self._collecting:
                self._changed.notify()
            elif self._is_full():
                self._filled.notify()

    def take(self) -> list[Job] | None:
        """Wait for work and take a batch; None once the queue is closed and empty.

        Cancelled jobs are dropped here, expired ones are handed out for the worker to refuse.
        """
        with self._changed:
            while True:
                while not self._jobs or self._collecting:
                    if self._closed and not self._jobs:
                        return None
                    self._changed.wait()
                self._wait_for_batch_mates()
                batch = self.form()
                if batch:
                    if self._jobs:
                        self._changed.notify()
                    elif self._closed:  # those that waited for this one to choose
                        self._changed.notify_all()
                    return batch

    def close(self) -> None:
        """Refuse new posts; those that wait are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._filled.notify_all()

    def drain(self) -> list[Job]:
        """Remove and return everything that waits."""
        with self._changed:
            jobs = list(self._jobs)
            self._jobs.clear()
            for job in jobs:
                self._forget(job)
            return jobs

    def _wait_for_batch_mates(self) -> None:
        self._collecting = True
        try:
            while (end := self.wait_end()) is not None:
                left = end - self._clock()
                if left <= 0 or not self._filled.wait(left):
                    return
        finally:
            self._collecting = False

    def wait_end(self) -> float | None:
        """Time until which the oldest post waits for others; None where it need not wait."""
        # Waiting pays only where another post is likely to come in time.
        is_pointless = self._closed or self._gap_s >= self._batch.max_wait_s
        if is_pointless or not self._jobs or self._is_full():
            return None
        return self._jobs[0].submitted + self._batch.max_wait_s

    def _is_full(self) -> bool:
        return len(self._jobs) >= self._batch.max_posts or self._tokens >= self._batch.max_tokens

    def form(self) -> list[Job]:
        """Make a batch of what waits, at once; empty where nothing does."""
        with self._changed:
            while self._jobs and self._jobs[0].future.cancelled():
                self._forget(self._jobs.popleft())
            return self._chosen() if self._jobs else []

    def _chosen(self) -> list[Job]:
        oldest = self._jobs[0]
        limit = fair_share(len(self._jobs), self._batch.workers, self._batch.max_posts)
        window = min(len(self._jobs), LOOK_AHEAD * self._batch.max_posts)
        candidates = [self._jobs.popleft() for _ in range(window)]
        order = sorted(
            range(1, window), key=lambda i: (abs(candidates[i].tokens - oldest.tokens), i)
        )
        chosen, tokens = {0}, oldest.tokens
        for index in order:
            job = candidates[index]
            if job.future.cancelled():
                chosen.add(index)
                continue
            if len(chosen) >= limit or tokens + job.tokens > self._batch.max_tokens:
                break
            chosen.add(index)
            tokens += job.tokens
        self._jobs.extendleft(candidates[i] for i in range(window - 1, -1, -1) if i not in chosen)
        batch = [candidates[i] for i in sorted(chosen)]
        for job in batch:
            self._forget(job)
        return [job for job in batch if not job.future.cancelled()]

    def _forget(self, job: Job) -> None:
        self._bytes -= job.size_bytes
        self._tokens -= job.tokens
        self._cost_s -= job.cost_s


class Admission:
    """Predicts when posts would be done, and refuses those that would be late."""

    def __init__(
        self,
        settings: QueueSettings,
        costs: CostModel,
        queue: JobQueue,
        in_flight_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join what the prediction needs.

        Args:
            settings: Default deadline and safety margin.
            costs: Expected times.
            queue: What waits.
            in_flight_s: Expected time left, uncorrected, of what is under way.
            clock: Seconds, the queue's.
        """
        self._settings, self._costs, self._queue = settings, costs, queue
        self._in_flight_s, self._clock = in_flight_s, clock

    def backlog_s(self) -> float:
        """Expected time until everything accepted so far is done."""
        return self._costs.correction * (self._queue.cost_s + self._in_flight_s())

    def admit(
        self,
        posts: Sequence[Post],
        deadline_s: float | None = None,
        *,
        since: float | None = None,
        reserved: int = 0,
    ) -> list[Job]:
        """Queue all posts of a request, or none.

        Args:
            posts: At least one.
            deadline_s: Seconds in which the answer is of use; None takes the default.
            since: From when they count, by the clock; None counts from now.
            reserved: Bytes that the queue already counts for these posts.

        Raises:
            RefusedError: They would be late, or there is no room.
        """
        limit = self._settings.deadline_s if deadline_s is None else deadline_s
        now = self._clock()
        deadline = (now if since is None else since) + limit
        limit = deadline - now
        # What the body's reservation does not cover, e.g. pictures that were fetched.
        uncounted = max(0, sum(map(post_bytes, posts)) - reserved)
        jobs = []
        for post in posts:
            tokens = estimate_tokens(post.text)
            jobs.append(
                Job(
                    post=post,
                    tokens=tokens,
                    size_bytes=uncounted // len(posts),
                    cost_s=self._costs.table.post_s(tokens, has_image=post.image is not None),
                    deadline=deadline,
                    submitted=now,
                )
            )
        # Deviations of many batches even out, but those of a slow machine do not: be cautious.
        backlog = self._costs.cautious * (self._queue.cost_s + self._in_flight_s())
        # Under load the last post of a request ends one full batch after the work ahead of it.
        expected = backlog + self._costs.batch_s([job.tokens for job in jobs], count_pictures(jobs))
        if expected * self._settings.margin > limit:
            raise RefusedError(
                "deadline",
                f"expected to take {expected:.2f} s, the deadline is {limit:.2f} s; "
                "try again later or allow more time",
                max(0.0, expected * self._settings.margin - limit),
            )
        self._queue.put(jobs)
        return jobs
