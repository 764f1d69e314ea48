"""How long a run may take, and what is left of it for each workload."""

import time
from collections.abc import Callable
from dataclasses import replace

from amlr.benchmarks.measure import Budget

ENOUGH_S = 2.0
"""With less than this left, a workload is not begun."""


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
