"""A post on its way through the server, the engine it goes to, and the answer."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from amlr.errors import OverloadedError
from amlr.runtime.results import Post, Result


class TaggingEngine(Protocol):
    """Tags posts from several threads at once; `amlr.runtime.Engine` is one."""

    def tag_batch(self, posts: Sequence[Post]) -> list[Result]:
        """One result per post, in order; never raises for a bad post."""
        ...


class RefusedError(OverloadedError):
    """Work that was not begun; trying again later is safe.

    Attributes:
        cause: `queue_full`, `bytes_full`, `deadline`, `expired`, `not_started`, `starting`
            or `stopping`.
        retry_after_s: When there is likely to be room.
    """

    def __init__(self, cause: str, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s


class WorkerFailedError(RuntimeError):
    """The engine or its worker broke while this post was being computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A result with how long its parts took.

    Attributes:
        result: The engine's.
        wait_s: Time in the queue.
        compute_s: Time of the batch it was in.
    """

    result: Result
    wait_s: float
    compute_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One post in the queue.

    Attributes:
        post: What to tag; its picture is bytes or None.
        tokens: Estimated tokens, the unit of batch size and cost.
        size_bytes: Memory it holds while it waits.
        cost_s: Expected time it adds to a busy server.
        deadline: Monotonic time after which nobody wants the answer.
        future: Receives an `Answer`; cancelling it drops the job.
        submitted: Monotonic time of submission.
    """

    post: Post
    tokens: int
    size_bytes: int
    cost_s: float
    deadline: float
    future: "Future[Answer]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


def post_bytes(post: Post) -> int:
    """Memory that a waiting post holds, roughly."""
    picture = len(post.image) if isinstance(post.image, (bytes, bytearray, memoryview)) else 0
    words = 0 if post.words is None else 16 * len(post.words)
    # Allow 1 kB for object overhead.
    return 1024 + sys.getsizeof(post.text) + picture + words


def count_pictures(jobs: Sequence[Job]) -> int:
    """How many of the jobs have a picture; the costs of a batch depend on it."""
    return sum(job.post.image is not None for job in jobs)
