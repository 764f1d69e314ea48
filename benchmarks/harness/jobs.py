"""Messages between the command and its worker processes."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from amlr.benchmarks.systems.base import Picture

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Calls to prepare and time.

    Attributes:
        picture: What happens to pictures.
        calls: Model inputs of each call, or whole posts when `end_to_end`.
        end_to_end: Text and image file in, entities out.
    """

    picture: Picture
    calls: tuple[tuple[Any, ...], ...]
    end_to_end: bool = False


class Verdict(NamedTuple):
    """What a job's first pass gave.

    Attributes:
        outputs: Per call the scores of each post, or the entities of each post.
        first_ms: Time of the very first call, compilation and page faults included.
    """

    outputs: list[list[Any]]
    first_ms: float


@dataclass(slots=True, kw_only=True)
class Samples:
    """Durations of one peer on one workload, nanoseconds."""

    wall_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)

    def add(self, more: "Samples") -> None:
        """Append the durations of further calls."""
        self.wall_ns.extend(more.wall_ns)
        self.cpu_ns.extend(more.cpu_ns)

    def values_ms(self, clock: Clock) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Durations in milliseconds."""
        return np.array(self.wall_ns if clock == "wall" else self.cpu_ns, np.float64) / 1e6

    @property
    def waiting(self) -> float:
        """Wall time over processor time: well above 1 (one thread) means the machine was busy."""
        return float(np.sum(self.wall_ns) / max(1.0, float(np.sum(self.cpu_ns))))
