"""Interleaved timing: every round runs each peer once, so that drift hits all alike; deadlines."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

Clock = Literal["wall", "cpu"]
# With fewer seconds left, a workload is not begun.
ENOUGH_S = 2.0


@dataclass(slots=True, kw_only=True)
class Samples:
    """Durations of one peer on one workload, nanoseconds."""

    wall_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)

    def add(self, more: Self) -> None:
        """Append the durations of further calls."""
        self.wall_ns.extend(more.wall_ns)
        self.cpu_ns.extend(more.cpu_ns)

    def values_ms(self, clock: Clock) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Durations in milliseconds."""
        return np.array(self.wall_ns if clock == "wall" else self.cpu_ns, np.float64) / 1e6

    @property
    def waiting(self) -> float:
        """Wall time over processor time: well above 1 (one thread) means the machine was busy."""
        return sum(self.wall_ns) / max(1, sum(self.cpu_ns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to measure one workload.

    Attributes:
        seconds: No round begins that would probably end past this.
        min_rounds: Rounds run in any case.
        max_rounds: Rounds never exceeded.
    """

    seconds: float
    min_rounds: int
    max_rounds: int = 100

    def within(self, seconds: float) -> Self:
        """The same for a run that must end: so many seconds, and one round in any case."""
        rounds = min(2, self.min_rounds) if seconds > 0 else 1
        return replace(self, seconds=max(0.0, seconds), min_rounds=rounds)


def measure(
    runners: Mapping[str, Callable[[int], Samples]],
    calls: int,
    budget: Budget,
    *,
    on_failure: Callable[[str, Exception], None],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Samples]:
    """Time a prepared job on all peers.

    Args:
        runners: By label, what times a call, given by its number, of each peer.
        calls: How many it has.
        budget: When to stop.
        on_failure: Called when a peer fails; it is left out from then on.
        now: Clock in seconds.

    Returns:
        Samples of the peers that got through every round.
    """
    alive = dict(runners)
    samples = {label: Samples() for label in alive}
    start = begin = now()
    longest = 0.0
    for number in range(budget.max_rounds):
        for label in _rotated(list(alive), number):
            try:
                for index in range(calls):
                    samples[label].add(alive[label](index))
            # Any failure of a peer ends that peer only.
            except Exception as error:
                del alive[label], samples[label]
                on_failure(label, error)
        end = now()
        longest, begin = max(longest, end - begin), end
        if number + 1 >= budget.min_rounds and end - start + longest > budget.seconds:
            break
    return samples


def _rotated(labels: list[str], number: int) -> list[str]:
    """Another peer begins each round, so that none always follows the same one."""
    shift = number % max(1, len(labels))
    return labels[shift:] + labels[:shift]


class Deadline:
    """Seconds of a whole run; None is without end."""

    def __init__(self, seconds: float | None, *, now: Callable[[], float] = time.monotonic) -> None:
        """Start the clock."""
        self._now = now
        self._end = None if seconds is None else now() + seconds

    @property
    def left(self) -> float:
        """Seconds left; infinite without an end, never negative."""
        return float("inf") if self._end is None else max(0.0, self._end - self._now())

    @property
    def is_set(self) -> bool:
        """Whether there is an end at all."""
        return self._end is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more should begin."""
        return self.left < ENOUGH_S


def run_threads(call: Callable[[int], int], threads: int, seconds: float) -> tuple[int, float]:
    """Call from several threads until the time is up.

    Args:
        call: Takes the number of the call, returns the posts it handled.
        threads: Calls at a time.
        seconds: No call begins after these.

    Returns:
        Posts handled, and the seconds they took.

    Raises:
        BaseException: What a call raised; the others stop.
    """
    numbers, failed, begun = itertools.count(), threading.Event(), time.perf_counter()

    def work(_: int) -> int:
        posts = 0
        try:
            while not failed.is_set() and time.perf_counter() - begun < seconds:
                posts += call(next(numbers))
        except BaseException:
            failed.set()
            raise
        return posts

    with ThreadPoolExecutor(threads) as pool:
        posts = sum(pool.map(work, range(threads)))
    return posts, time.perf_counter() - begun
