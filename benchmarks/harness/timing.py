"""Interleaved timing: every round runs each peer once, so that drift hits all alike; deadlines."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from amlr.benchmarks.harness.jobs import Samples

# With fewer seconds left, a workload is not begun.
ENOUGH_S = 2.0


class Runner(Protocol):
    """What is timed: a remote peer, or a double of one."""

    def run(self, index: int) -> Samples:
        """Time a prepared call."""
        ...


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


def measure(
    runners: Mapping[str, Runner],
    calls: int,
    budget: Budget,
    *,
    on_failure: Callable[[str, Exception], None],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Samples]:
    """Time a prepared job on all peers.

    Args:
        runners: Peers by label, each with the job prepared and run once.
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
                    samples[label].add(alive[label].run(index))
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

    def share(self, budget: Budget, weight: float, all_weights: float) -> tuple[Budget, float]:
        """What one workload may use of the time left.

        Args:
            budget: What it would use without an end.
            weight: Its weight.
            all_weights: Weights of all workloads not yet run, its own included.

        Returns:
            The budget, and its seconds with preparation included.
        """
        if self._end is None:
            return budget, float("inf")
        seconds = self.left * weight / all_weights
        return replace(budget, seconds=seconds, min_rounds=min(2, budget.min_rounds)), seconds


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
    numbers = itertools.count()
    counts = [0] * threads
    errors: list[BaseException] = []
    begun = time.perf_counter()

    def work(thread: int) -> None:
        try:
            while not errors and time.perf_counter() - begun < seconds:
                counts[thread] += call(next(numbers))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(counts), time.perf_counter() - begun
