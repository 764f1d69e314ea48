"""The n best answers of a linear chain or of segmental decoding, in order.

Shape letters: B batch or posts, T steps, Y tags, n answers, U units, C classes, N words, L longest.

Sums and ties are the decoders': the first answer is theirs. Where two answers tie, the one the tie
rule prefers at the last place they differ comes first.
"""

from typing import overload

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import Floats, Indices, Ints32
from amlr.kernels.units import Units
from amlr.kernels.validation import Chain, check_chain_values

Paths = tuple[Ints32, Floats]
Segmentations = tuple[list[list[Ints32]], Floats]
_MOST = 16


@overload
def n_best(scores: Units, lengths_b: npt.ArrayLike, n: int) -> Segmentations: ...


@overload
def n_best(
    scores: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    n: int,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
) -> Paths: ...


def n_best(
    scores: Units | npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    n: int,
    *,
    start_y: npt.ArrayLike | None = None,
    transitions_yy: npt.ArrayLike | None = None,
    end_y: npt.ArrayLike | None = None,
    allowed_yy: npt.ArrayLike | None = None,
) -> Paths | Segmentations:
    """Find the n best different answers of each sequence.

    Args:
        scores: `Units`, or emissions (B, T, Y) for a linear chain, which needs the other arguments.
        lengths_b: Words of each post, or steps of each sequence, shape (B,).
        n: How many, 1..16.
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        For units: per post up to n arrays (E, 3) of (start, end, class), and scores (B, n).
        For a linear chain: tags (B, n, T) int32, -1 past the end, and scores (B, n). Scores are
        float32, best first, -inf where a sequence has fewer answers (tags are then -1).

    Raises:
        ShapeError: As the decoders, or n out of range.
    """
    if not 1 <= n <= _MOST:
        raise ShapeError(f"n must lie in 1..{_MOST}, got {n}")
    if isinstance(scores, Units):
        lengths = scores.check_lengths(lengths_b)
        return _best_segmentations(scores, len(lengths), n)
    chain = check_chain_values(scores, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    return _best_paths(chain, n)


def _best_of(candidates_bk: Floats, n: int) -> tuple[Floats, Indices]:
    """The n largest of each row and where they stood, earlier ones first among equals."""
    order = np.argsort(-candidates_bk, axis=1, kind="stable")[:, :n]
    return np.take_along_axis(candidates_bk, order, 1), order


def _best_paths(chain: Chain, n: int) -> Paths:
    emissions, lengths, start, transitions, end = chain
    batch, steps, tags = emissions.shape
    path = np.full((batch, n, steps), -1, np.int32)
    scores = np.full((batch, n), -np.inf, np.float32)
    scores[lengths == 0, 0] = 0
    if not batch or not steps:
        return path, scores
    # State (tag, rank) of the n best prefixes ending in each tag, flattened as tag * n + rank.
    alpha = np.full((batch, tags, n), -np.inf, np.float32)
    alpha[:, :, 0] = start + emissions[:, 0]
    moves = np.repeat(transitions, n, axis=0)
    pointers = np.zeros((steps, batch, tags * n), np.intp)
    finals = np.full((batch, tags, n), -np.inf, np.float32)
    for t in range(steps):
        if t:
            sums = (alpha.reshape(batch, tags * n, 1) + moves).swapaxes(1, 2)
            best, order = _best_of(sums.reshape(batch * tags, tags * n), n)
            alpha = best.reshape(batch, tags, n) + emissions[:, t, :, None]
            pointers[t] = order.reshape(batch, tags * n)
        ends = lengths == t + 1
        finals[ends] = alpha[ends] + end[:, None]
    found, last = _best_of(finals.reshape(batch, tags * n), n)
    filled = lengths > 0
    scores[filled] = found[filled]
    state = np.zeros((batch, n), np.intp)
    for t in range(steps - 1, -1, -1):
        state = np.where((lengths == t + 1)[:, None], last, state)
        path[:, :, t] = np.where((lengths > t)[:, None], state // n, -1)
        state = np.take_along_axis(pointers[t], state, 1)
    path[np.isneginf(scores)] = -1
    return path, scores


def _best_segmentations(units: Units, posts: int, n: int) -> Segmentations:
    scores, table = units.scores_uc, units.unit_nlb
    words, longest, _ = table.shape
    classes = scores.shape[1]
    padded = np.concatenate([scores, np.full((1, classes), -np.inf, np.float32)])
    best = np.full((words + longest, posts, n), -np.inf, np.float32)
    best[:longest, :, 0] = 0  # rows before word 0 only meet empty cells
    pointers = np.zeros((words, posts, n), np.intp)
    for j in range(words):
        starts = best[j : j + longest].swapaxes(0, 1)  # posts, slot, rank
        gains = padded[table[j]].swapaxes(0, 1)  # posts, slot, class
        ending = (starts[:, :, None, :] + gains[:, :, :, None]).reshape(posts, -1)
        # First "no entity ends here", then longer units, lower classes, better prefixes.
        candidates = np.concatenate([best[j + longest - 1], ending], axis=1)
        best[j + longest], pointers[j] = _best_of(candidates, n)
    answers: list[list[Ints32]] = []
    found = best[-1]
    for post in range(posts):
        ranks = range(int(np.count_nonzero(found[post] > -np.inf)))
        moves = pointers[:, post].tolist()
        answers.append([_trace(moves, rank, longest, classes, n) for rank in ranks])
    return answers, found


def _trace(moves: list[list[int]], rank: int, longest: int, classes: int, n: int) -> Ints32:
    """Entities of one answer, from its rank after the last word."""
    rows = []
    stop = len(moves)
    while stop:
        move = moves[stop - 1][rank]
        if move < n:
            rank, stop = move, stop - 1
            continue
        cell, rank = divmod(move - n, n)
        slot, label = divmod(cell, classes)
        start = stop - longest + slot
        rows.append((start, stop - 1, label))
        stop = start
    return np.array(rows[::-1], np.int32).reshape(-1, 3)
