"""Multi-scale units: which runs of subwords are scored. Shared with training.

A unit is a window of `scale` neighbouring subwords, 1..K. Scale-major numbering over T steps: all
T units of scale 1, then T - 1 of scale 2, and so on, each by its first step.

Shape letters: N words, T subword steps, U units, K largest scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import Ints, Ints32


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTable:
    """Units of one window, one row each, int32.

    Attributes:
        start_word_u: First word, or -1 where words do not matter.
        end_word_u: Last word, inclusive, or -1.
        start_step_u: First subword step.
        scale_u: Number of subword steps, 1..K.
    """

    start_word_u: Ints32
    end_word_u: Ints32
    start_step_u: Ints32
    scale_u: Ints32

    def __len__(self) -> int:
        return len(self.scale_u)

    @property
    def end_step_u(self) -> Ints32:
        """Last subword step of each unit, inclusive."""
        return self.start_step_u + self.scale_u - 1

    def index_in(self, steps: int) -> Ints:
        """Scale-major index of each unit when the sequence is `steps` long."""
        return scale_major_index(self.start_step_u, self.scale_u, steps)


def scale_major_index(start_u: npt.ArrayLike, scale_u: npt.ArrayLike, steps: int) -> Ints:
    """Index of units among all units of a sequence of `steps`, scale-major.

    Example:
        >>> scale_major_index([0, 3, 0, 2], [1, 1, 2, 2], 4).tolist()
        [0, 3, 4, 6]
    """
    start, scale = np.asarray(start_u, np.int64), np.asarray(scale_u, np.int64)
    # Scales 1..s-1 come first: (s - 1) * steps minus the 0 + 1 + ... + (s - 2) missing at the end.
    return (scale - 1) * steps - (scale - 1) * (scale - 2) // 2 + start


def unit_count(steps: int, max_scale: int) -> int:
    """Number of all units over `steps` steps."""
    scales = min(max_scale, steps)
    return scales * steps - scales * (scales - 1) // 2


def aligned_units(first_n: npt.ArrayLike, last_n: npt.ArrayLike, max_scale: int) -> UnitTable:
    """Units that start at a word's first subword and end at a word's last one.

    Args:
        first_n: Step of each word's first subword, shape (N,).
        last_n: Step of each word's last subword, shape (N,).
        max_scale: Longest unit K, in steps.

    Returns:
        Units sorted by end word, then by start word.

    Example:
        >>> units = aligned_units([1, 2, 4], [1, 3, 4], 3)
        >>> list(zip(units.start_word_u.tolist(), units.end_word_u.tolist()))
        [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    """
    return aligned_units_of([(first_n, last_n)], max_scale)[0]


def aligned_units_of(
    windows: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], max_scale: int
) -> list[UnitTable]:
    """As `aligned_units` for several windows, in one pass over all their words.

    Args:
        windows: `first_n` and `last_n` of each.
        max_scale: Longest unit K, in steps.
    """
    if not windows:
        return []
    counts = [len(np.asarray(first)) for first, _ in windows]
    first = np.concatenate([np.asarray(first, np.int32) for first, _ in windows])
    last = np.concatenate([np.asarray(last, np.int32) for _, last in windows])
    bounds = np.array([0, *accumulate(counts)])
    every = np.arange(len(first), dtype=np.int32)
    # Words within their window, so that no unit begins before it.
    place = every - np.repeat(bounds[:-1], counts).astype(np.int32)
    # A word has at least one step, so no unit covers more than K words.
    back = np.arange(max_scale - 1, -1, -1, dtype=np.int32)
    start = place[:, None] - back
    first_of_start = first.take(every[:, None] - back, mode="clip")
    scale = last[:, None] - first_of_start + 1
    kept = np.flatnonzero((start >= 0) & (scale <= max_scale))
    word = kept // max_scale
    columns = (
        start.take(kept),
        place.take(word),
        first_of_start.take(kept),
        scale.take(kept),
    )
    # Units come by their last word.
    ends = word.searchsorted(bounds).tolist()
    return [
        UnitTable(
            start_word_u=columns[0][begin:end],
            end_word_u=columns[1][begin:end],
            start_step_u=columns[2][begin:end],
            scale_u=columns[3][begin:end],
        )
        for begin, end in pairwise(ends)
    ]


def all_units(steps: int, max_scale: int) -> UnitTable:
    """Every unit over `steps` steps in scale-major order, special tokens included."""
    scales = np.arange(1, min(max_scale, steps) + 1, dtype=np.int32)
    start = [np.arange(steps - scale + 1, dtype=np.int32) for scale in scales.tolist()]
    scale_u = np.repeat(scales, steps - scales + 1).astype(np.int32)
    nothing = np.full(len(scale_u), -1, np.int32)
    return UnitTable(
        start_word_u=nothing,
        end_word_u=nothing,
        start_step_u=np.concatenate([np.zeros(0, np.int32), *start]),
        scale_u=scale_u,
    )
