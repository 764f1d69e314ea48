"""Inputs for the CUDA decoders: ragged, constrained, tied and extreme."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels import entity_marginals
from amlr.kernels.units import Units

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCase:
    """One batch of linear chains, in the order of the decoders' arguments."""

    emissions_bty: Floats
    lengths_b: npt.NDArray[np.int64]
    start_y: Floats
    transitions_yy: Floats
    end_y: Floats
    allowed_yy: npt.NDArray[np.bool_] | None = None

    def arguments(self) -> tuple[Any, ...]:
        """Positional arguments of `HostDecoders`."""
        return (
            self.emissions_bty,
            self.lengths_b,
            self.start_y,
            self.transitions_yy,
            self.end_y,
            self.allowed_yy,
        )

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the public functions."""
        return {
            "start_y": self.start_y,
            "transitions_yy": self.transitions_yy,
            "end_y": self.end_y,
            "allowed_yy": self.allowed_yy,
        }


def chain_case(
    seed: int,
    batch: int,
    steps: int,
    tags: int,
    *,
    integers: bool = False,
    constrained: bool = False,
) -> ChainCase:
    """Random chains; small integers are exact in float32 and full of ties."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Floats:
        if integers:
            return rng.integers(-3, 4, shape).astype(np.float32)
        return rng.standard_normal(shape).astype(np.float32)

    lengths = rng.integers(0, steps + 1, batch)
    lengths[:1] = steps
    lengths[1:2] = 0
    lengths[2:3] = 1
    emissions = draw(batch, steps, tags)
    # Past the end anything may stand; a decoder that reads it shows.
    for b, length in enumerate(lengths):
        emissions[b, length:] = np.nan
    start, transitions, end = draw(tags), draw(tags, tags), draw(tags)
    allowed = None
    if constrained:
        allowed = rng.random((tags, tags)) < 0.7
        np.fill_diagonal(allowed, True)  # so that some path always exists
        start[1:][rng.random(tags - 1) < 0.3] = -np.inf
    return ChainCase(
        emissions_bty=emissions,
        lengths_b=lengths,
        start_y=start,
        transitions_yy=transitions,
        end_y=end,
        allowed_yy=allowed,
    )


def unit_case(
    seed: int,
    posts: int,
    words: int,
    classes: int,
    *,
    longest: int = 5,
    density: float = 0.7,
    integers: bool = False,
    shuffled: bool = False,
) -> tuple[Units, npt.NDArray[np.int64]]:
    """Random units of posts with 0..words words; `shuffled`: any order within one end word."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, words + 1, posts)
    lengths[:1] = words
    lengths[1:2] = 0
    lengths[2:3] = 1
    offsets, pairs = [0], []
    for length in lengths:
        mine = [
            (start, end)
            for end in range(length)
            for start in range(max(0, end - longest + 1), end + 1)
            if rng.random() < density
        ]
        if shuffled:
            rng.shuffle(mine)
            mine.sort(key=lambda pair: pair[1])
        pairs += mine
        offsets.append(len(pairs))
    spans = np.array(pairs, np.int64).reshape(-1, 2)
    shape = (len(spans), classes)
    if integers:
        scores = rng.integers(-4, 3, shape).astype(np.float32)
    else:
        scores = (rng.standard_normal(shape) - 0.7).astype(np.float32)
    scores[rng.random(shape) < 0.05] = -np.inf
    return Units(np.array(offsets), spans[:, 0], spans[:, 1], scores), lengths


def chosen_marginals(
    units: Units,
    lengths_b: npt.NDArray[np.int64],
    entities: Sequence[npt.NDArray[np.int32]],
    temperature: float,
) -> npt.NDArray[np.float32]:
    """The reference's marginal probabilities of decoded entities, one after another."""
    marginals = entity_marginals(units, lengths_b, temperature=temperature)
    place = {
        (post, int(units.start_u[u]), int(units.end_u[u])): u
        for post in range(len(lengths_b))
        for u in range(int(units.post_offsets[post]), int(units.post_offsets[post + 1]))
    }
    found = [
        marginals[place[post, start, end], label]
        for post, rows in enumerate(entities)
        for start, end, label in rows.tolist()
    ]
    return np.array(found, np.float32)
