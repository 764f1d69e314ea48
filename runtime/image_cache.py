"""Encoded pictures by content: each is computed once, also when several threads ask at a time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from amlr.errors import AmlrError
from amlr.runtime.known_files import KnownFiles

Outcome = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """Counters since the cache was made.

    Attributes:
        hits: Lookups answered from the cache or by a computation already under way.
        misses: Lookups that had to compute.
        entries: Pictures held now.
        bytes: Their size.
        evictions: Pictures dropped to stay in budget.
    """

    hits: int
    misses: int
    entries: int
    bytes: int
    evictions: int


class ImageCache:
    """Least-recently-used cache with a byte budget and single flight.

    Errors are handed to all who wait, and not kept: a file may be repaired.

    Attributes:
        files: Picture files that need not be read again; None reads them all.
    """

    files: KnownFiles | None = None

    def __init__(self, budget_bytes: int) -> None:
        """Make an empty cache; a budget of 0 keeps nothing, but still computes once at a time."""
        self._budget = max(0, budget_bytes)
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._in_flight: dict[Hashable, Future[Outcome]] = {}
        self._lock = threading.Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get_many(
        self,
        keys: Sequence[Hashable],
        compute: Callable[[list[int]], Sequence[Any | AmlrError]],
        size_of: Callable[[Any], int],
    ) -> list[Any | AmlrError]:
        """Look up values, computing those that nobody has.

        Args:
            keys: What to look up; equal keys are computed once.
            compute: Takes positions in `keys` and returns a value, or the error, for each.
            size_of: Bytes that a value holds.

        Returns:
            A value or an `AmlrError` for each key.
        """
        results: list[Any | AmlrError] = [None] * len(keys)
        mine: list[int] = []
        waiting: list[tuple[int, Future[Outcome]]] = []
        futures: dict[Hashable, Future[Outcome]] = {}
        with self._lock:
            for position, key in enumerate(keys):
                if key in self._held:
                    self._held.move_to_end(key)
                    results[position] = self._held[key][0]
                    self._hits += 1
                elif key in self._in_flight:
                    waiting.append((position, self._in_flight[key]))
                    self._hits += 1
                else:
                    futures[key] = self._in_flight[key] = Future()
                    mine.append(position)
                    self._misses += 1
        try:
            # Own work before waiting: two callers that wait for each other both finish.
            outcomes = compute(mine) if mine else ()
            for position, outcome in zip(mine, outcomes, strict=True):
                results[position] = outcome
                self._finish(keys[position], futures.pop(keys[position]), outcome, size_of)
        finally:
            # Only after an unexpected exception, which must not leave others waiting for ever.
            for key, future in futures.items():
                error = AmlrError("the computation of this picture failed in another call")
                self._finish(key, future, error, size_of)
        for position, future in waiting:
            results[position] = future.result()
        return results

    def holds(self, key: Hashable) -> bool:
        """Whether a value is there now; neither a hit nor a miss."""
        return key in self._held

    def _finish(
        self,
        key: Hashable,
        future: "Future[Outcome]",
        outcome: Outcome,
        size_of: Callable[[Any], int],
    ) -> None:
        with self._lock:
            del self._in_flight[key]
            if not isinstance(outcome, AmlrError):
                self._hold(key, outcome, size_of(outcome))
        future.set_result(outcome)

    def _hold(self, key: Hashable, value: Any, size: int) -> None:
        if size > self._budget:
            return
        self._held[key] = (value, size)
        self._bytes += size
        while self._bytes > self._budget:
            _, (_, dropped) = self._held.popitem(last=False)
            self._bytes -= dropped
            self._evictions += 1

    def reset(self) -> None:
        """Drop all pictures and start counting anew."""
        with self._lock:
            self._held.clear()
            self._bytes = self._hits = self._misses = self._evictions = 0

    def stats(self) -> CacheStats:
        """Counters and current size."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                entries=len(self._held),
                bytes=self._bytes,
                evictions=self._evictions,
            )
