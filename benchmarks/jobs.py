"""Messages between the command and its worker processes."""

from dataclasses import dataclass
from typing import Any

from amlr.benchmarks.inputs import ModelInput, Picture
from amlr.runtime.batching import Scores
from amlr.runtime.results import Post


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Batches to run on one workload.

    Attributes:
        key: Name of the job.
        picture: What happens to pictures.
        batches: Model inputs of each call, or whole posts when `end_to_end`.
        end_to_end: Text and image file in, entities out.
    """

    key: str
    picture: Picture
    batches: tuple[tuple[ModelInput, ...], ...] = ()
    posts: tuple[tuple[Post, ...], ...] = ()
    end_to_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A worker that can take posts.

    Attributes:
        load_s: Wall time of import and load.
        load_cpu_s: Processor time of the same.
        memory_mb: Peak resident size so far.
    """

    load_s: float
    load_cpu_s: float
    memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a job's first pass gave.

    Attributes:
        outputs: Per batch the scores of each post, or the entities of each post.
        first_ms: Time of the very first call, compilation and page faults included.
    """

    outputs: list[list[Any]]
    first_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations of repeated calls, nanoseconds."""

    wall_ns: list[int]
    cpu_ns: list[int]


def max_error(expected: list[list[Scores]], actual: list[list[Scores]]) -> float:
    """Largest absolute difference of any raw logit between two sets of outputs."""
    import numpy as np

    worst = 0.0
    for a_batch, b_batch in zip(expected, actual, strict=True):
        for a, b in zip(a_batch, b_batch, strict=True):
            for left, right in (
                (a.unit_logits_mc, b.unit_logits_mc),
                (a.emissions_ny, b.emissions_ny),
            ):
                error = float(np.abs(left - right).max(initial=0.0))
                worst = max(worst, float("inf") if np.isnan(error) else error)
    return worst
