"""Messages between the command and its worker processes."""

from dataclasses import dataclass
from typing import Any

from amlr.benchmarks.systems.base import ModelInput, Picture
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
    """

    load_s: float
    load_cpu_s: float


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
