"""Decoders compiled by Numba: the same sums, ties and errors as the NumPy ones, one thread.

Imported only when asked for. Compiled code is cached beside this file, or in the user's cache
directory where the package is read-only, so later processes load it instead of compiling.

Shape letters: B batch, T steps, Y tags, U units, C classes, N words.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.units import Units
from amlr.kernels.validation import (
    Chain,
    Floats,
    explain_bad_scores,
    raise_not_finite,
)

_MAX_TAGS = 256  # back-pointers are bytes


def _compiled(function: Callable[..., Any]) -> Any:
    return numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(function)


@_compiled
def _is_bad(values: Any) -> Any:
    bad = False
    for value in values.flat:
        bad |= not value < np.inf
    return bad


@_compiled
def _decode_rows(  # noqa: C901 -- one flat loop: helpers made it half as fast again
    emissions: Any, lengths: Any, start: Any, transitions: Any, end: Any, tags: Any, scores: Any
) -> Any:
    """One sequence after another; True where a used score is NaN or +inf."""
    batch, steps, count = emissions.shape
    into = np.empty((count, count), np.float32)
    for i in range(count):
        for j in range(count):
            into[j, i] = transitions[i, j]
    pointers = np.empty((steps, count), np.uint8)
    alpha = np.empty(count, np.float32)
    following = np.empty(count, np.float32)
    bad = False
    longest = 0
    for b in range(batch):
        length = lengths[b]
        longest = max(longest, length)
        for t in range(length, steps):
            tags[b, t] = -1
        if length == 0:
            scores[b] = 0
            continue
        for j in range(count):
            value = emissions[b, 0, j]
            bad |= not value < np.inf
            alpha[j] = start[j] + value
        for t in range(1, length):
            for j in range(count):
                best = alpha[0] + into[j, 0]
                tag = 0
                for i in range(1, count):
                    candidate = alpha[i] + into[j, i]
                    if candidate > best:
                        best, tag = candidate, i
                value = emissions[b, t, j]
                bad |= not value < np.inf
                following[j] = best + value
                pointers[t, j] = tag
            alpha, following = following, alpha
        tag = 0
        best = alpha[0] + end[0]
        for j in range(1, count):
            candidate = alpha[j] + end[j]
            if candidate > best:
                best, tag = candidate, j
        scores[b] = best
        bad |= not best < np.inf
        for t in range(length - 1, 0, -1):
            tags[b, t] = tag
            tag = pointers[t, tag]
        tags[b, 0] = tag
    if longest > 0:
        bad |= _is_bad(start) | _is_bad(end)
    if longest > 1:
        bad |= _is_bad(into)
    return bad


@_compiled
def _best_class(scores: Any, unit: int) -> Any:
    """Largest score of a unit and the lowest class that reaches it."""
    best = scores[unit, 0]
    label = 0
    for c in range(1, scores.shape[1]):
        if scores[unit, c] > best:
            best, label = scores[unit, c], c
    return best, label


@_compiled
def _decode_posts(
    offsets: Any, start: Any, end: Any, scores: Any, words: int, rows: Any, counts: Any, totals: Any
) -> None:
    """Segmental decoding, one post after another; entities of post b start at rows[offsets[b]]."""
    best = np.zeros(words + 1, np.float32)
    chosen = np.zeros(words + 1, np.int64)
    for b in range(len(offsets) - 1):
        unit = offsets[b]
        stop = offsets[b + 1]
        last = end[stop - 1] + 1 if stop > unit else 0
        for j in range(last):
            value = best[j]
            choice = -1
            while unit < stop and end[unit] == j:
                total = best[start[unit]] + _best_class(scores, unit)[0]
                if total > value or (
                    total == value and choice >= 0 and start[unit] < start[choice]
                ):
                    value, choice = total, unit
                unit += 1
            best[j + 1] = value
            chosen[j + 1] = choice
        totals[b] = best[last]
        counts[b] = _trace_post(chosen, start, end, scores, last, rows, offsets[b])


@_compiled
def _trace_post(
    chosen: Any, start: Any, end: Any, scores: Any, last: int, rows: Any, first_row: int
) -> Any:
    """Write the entities of one post in text order; returns how many."""
    count = 0
    j = last
    while j > 0:
        unit = chosen[j]
        count += unit >= 0
        j = start[unit] if unit >= 0 else j - 1
    row = first_row + count
    j = last
    while j > 0:
        unit = chosen[j]
        if unit >= 0:
            row -= 1
            rows[row, 0] = start[unit]
            rows[row, 1] = end[unit]
            rows[row, 2] = _best_class(scores, unit)[1]
        j = start[unit] if unit >= 0 else j - 1
    return count


def viterbi_decode(chain: Chain) -> tuple[npt.NDArray[np.int32], Floats]:
    """As `amlr.kernels.viterbi_decode`, for checked inputs."""
    emissions, lengths, start, transitions, end = chain
    batch, steps, count = emissions.shape
    if count > _MAX_TAGS:
        raise ShapeError(
            f'the numba decoder takes at most {_MAX_TAGS} tags, got {count}; use backend="numpy"'
        )
    tags = np.empty((batch, steps), np.int32)
    scores = np.empty(batch, np.float32)
    # One memory layout, hence one compiled version.
    pack = np.ascontiguousarray
    if _decode_rows(
        pack(emissions), lengths, pack(start), pack(transitions), pack(end), tags, scores
    ):
        explain_bad_scores(chain)
    return tags, scores


def segmental_decode(
    units: Units, lengths_b: npt.ArrayLike
) -> tuple[list[npt.NDArray[np.int32]], Floats]:
    """As `amlr.kernels.segmental_decode`, compiled."""
    units.check_lengths(lengths_b)
    posts = len(units.post_offsets) - 1
    rows = np.empty((len(units.start_u), 3), np.int32)
    counts = np.empty(posts, np.intp)
    totals = np.empty(posts, np.float32)
    offsets, start, end = (
        np.ascontiguousarray(part, np.int64)
        for part in (units.post_offsets, units.start_u, units.end_u)
    )
    words = int(units.layout.words_b.max(initial=0))
    scores = np.ascontiguousarray(units.scores_uc)
    _decode_posts(offsets, start, end, scores, words, rows, counts, totals)
    if posts and not totals[totals.argmax()] < np.inf:
        raise_not_finite("the sum of scores_uc", totals)
    firsts = offsets.tolist()
    return [rows[a : a + n] for a, n in zip(firsts, counts.tolist(), strict=False)], totals
