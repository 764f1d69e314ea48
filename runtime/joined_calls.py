"""Callers that wait for each other share one call, so that few items of many fill a batch."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class JoinedCalls(Generic[T, R]):
    """A function on items of which few calls run at a time; who waits meanwhile joins the next.

    A caller alone is never delayed: there is no timer and no thread.
    """

    def __init__(self, function: Callable[[Sequence[T]], list[R]], *, at_a_time: int) -> None:
        """Wrap a function.

        Args:
            function: One result an item, in order; what an item gets does not depend on others.
            at_a_time: Calls that may run beside each other.
        """
        self._function = function
        self._turns = threading.BoundedSemaphore(at_a_time)
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sequence[T], Future[list[R]]]] = []

    def __call__(self, items: Sequence[T]) -> list[R]:
        """Results of some items.

        Raises:
            BaseException: What the function raised, for every caller that shared the call.
        """
        if not items:
            return []
        mine: Future[list[R]] = Future()
        with self._lock:
            self._waiting.append((items, mine))
        with self._turns:
            with self._lock:
                # Another caller may have taken these items along meanwhile.
                is_waiting = any(future is mine for _, future in self._waiting)
                jobs = self._waiting if is_waiting else []
                if is_waiting:
                    self._waiting = []
            if jobs:
                self._run(jobs)
        return mine.result()

    def _run(self, jobs: Sequence[tuple[Sequence[T], Future[list[R]]]]) -> None:
        try:
            results = iter(self._function([item for items, _ in jobs for item in items]))
            for items, future in jobs:
                future.set_result([next(results) for _ in items])
        except BaseException as error:
            for _, future in jobs:
                if not future.done():
                    future.set_exception(error)
