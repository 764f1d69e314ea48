"""The protocol every measured system follows, and the registry of their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import ModelInput, Picture
from amlr.runtime.batching import Scores
from amlr.runtime.results import Entity, Post

RESEARCH_STEPS = 50
"""Padded length of the published code on Twitter-2015, special tokens included."""
ESCALATION = "escalation"
"""Kind of a tier that needs decoding to know what to compute: it runs end to end only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """Which system a worker process becomes.

    Attributes:
        name: Name in reports, e.g. `research` or `amlr-onnxruntime`.
        kind: Key of the implementation.
        precision: Numeric precision asked for.
        options: Further settings of the implementation, plain values.
        preload: Shared library that the worker's loader puts first (LD_PRELOAD).
    """

    name: str
    kind: str
    precision: str = "fp32"
    options: tuple[tuple[str, str], ...] = ()
    preload: str | None = None

    @property
    def label(self) -> str:
        """Unique key of a run: name and precision."""
        return f"{self.name}/{self.precision}"

    def option(self, name: str) -> str:
        """One setting.

        Raises:
            KeyError: It is not set.
        """
        return dict(self.options)[name]


class Peer(Protocol):
    """A system that scores posts.

    `prepare` may do anything a long-running service does before requests arrive (copy pixels into
    tensors, encode pictures of a `hit`); what it returns is timed, and gives raw outputs that
    `scores` reads afterwards, off the clock.
    """

    def encode(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """What this system can keep of pictures between requests: regions, or only the pixels."""
        ...

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Build the timed call for one batch of posts."""
        ...

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Raw logits of each post's units and steps, in the order of `inputs`."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class Whole(Protocol):
    """A system from texts and picture files to entities."""

    def prepare(self, posts: Sequence[Post], picture: Picture) -> Callable[[], Any]:
        """Build the timed call; on a `hit`, its first run fills the cache."""
        ...

    def entities(self, raw: Any) -> list[list[Entity]]:
        """Entities of each post."""
        ...
