"""Says no in time: work that cannot meet its deadline is refused before it is begun."""

import time
from collections.abc import Callable, Sequence

from amlr.runtime.results import Post
from amlr.serving.costs import CostModel, estimate_tokens
from amlr.serving.jobs import Job, RefusedError, post_bytes
from amlr.serving.queue import JobQueue
from amlr.serving.settings import QueueSettings


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
        images = sum(job.post.image is not None for job in jobs)
        # Under load the last post of a request ends one full batch after the work ahead of it.
        expected = backlog + self._costs.batch_s([job.tokens for job in jobs], images)
        if expected * self._settings.margin > limit:
            raise RefusedError(
                "deadline",
                f"expected to take {expected:.2f} s, the deadline is {limit:.2f} s; "
                "try again later or allow more time",
                max(0.0, expected * self._settings.margin - limit),
            )
        self._queue.put(jobs)
        return jobs
