"""Segmental Viterbi over ragged units: the best set of non-overlapping entities.

Shape letters: B posts, U units, C classes, N words, L longest unit in words, E chosen entities.

There are no transitions between segments, so classes are reduced first and the recurrence is
scalar, one addition per unit, in the dtype of the scores:

    best[0]   = 0
    best[j+1] = max(best[j], max over units ending at j of (best[start] + max_c g(unit, c)))

One tie rule, at each end position from the last word backwards: prefer "no entity ends here", then
the longer unit, then the lowest class.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import AnyFloats, AnyInts, Bools, Floats, Indices, Ints32
from amlr.kernels.units import Units
from amlr.kernels.validation import INF, check_backend, raise_not_finite


def segmental_decode(
    units: Units, lengths_b: npt.ArrayLike, *, backend: str = "numpy"
) -> tuple[list[Ints32], Floats]:
    """Find the best non-overlapping units of each post.

    Args:
        units: Scored units of all posts.
        lengths_b: Words of each post, shape (B,).
        backend: "numpy" or "cuda"; both return the same.

    Returns:
        Per post an int32 array (E, 3) of (start word, end word inclusive, class), in text order;
        scores (B,) float32, 0 where nothing is chosen.

    Raises:
        ShapeError: A unit ends past its post's last word, or scores overflow.
        InputError: No such backend.
        BackendUnavailableError: CUDA cannot be used here.

    Example:
        >>> import numpy as np
        >>> units = Units([0, 3], [0, 0, 1], [0, 1, 1], np.float32([[2], [5], [2]]))
        >>> entities, scores = segmental_decode(units, [2])
        >>> entities[0].tolist(), scores.tolist()
        ([[0, 1, 0]], [5.0])
    """
    check_backend(backend)
    if backend == "cuda":
        # Loaded when asked for: the device layer doubles the import time of this package.
        from amlr.kernels.cuda import default_decoders

        return default_decoders().segmental_decode(units, lengths_b)
    units.check_lengths(lengths_b)
    found, scores = find_segments(units)
    return found.split(), scores


def find_segments(units: Units) -> tuple["Found", Floats]:
    """As `segmental_decode` in NumPy, with the chosen units of all posts in one table.

    Raises:
        ShapeError: Scores overflow.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # found in the sums below
        found, scores = decode_table(units, units.scores_uc)
    if scores.size and not float(scores.max()) < INF:
        raise_not_finite("the sum of scores_uc", scores)
    return found, scores.astype(np.float32, copy=False)


class Found(NamedTuple):
    """Chosen entities of a batch, ordered by post and start.

    Attributes:
        unit_e: Chosen unit, shape (E,).
        rows_e3: (start, end, class), int32.
        counts_b: Entities of each post.
    """

    unit_e: Indices
    rows_e3: Ints32
    counts_b: Indices

    def split(self) -> list[Ints32]:
        """One array of rows per post."""
        stops = np.cumsum(self.counts_b).tolist()
        rows = self.rows_e3
        return [rows[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)] if stops else []


def reduce_classes(scores_uc: AnyFloats) -> AnyFloats:
    """Best class score of each unit, then -inf for the empty cells of a table, shape (U+1,)."""
    units, classes = scores_uc.shape
    best = np.empty(units + 1, scores_uc.dtype)
    best[units] = -np.inf
    inner = best[:units]
    inner[:] = scores_uc[:, 0]
    # Column by column: a reduction over a short last axis costs several times more.
    for c in range(1, classes):
        np.maximum(inner, scores_uc[:, c], out=inner)
    return best


def forward_maxima(cells_nlb: AnyFloats) -> AnyFloats:
    """best[j], shape (L-1 + N+1, B): L-1 rows of padding, then best of the first 0..N words.

    Each cell's g is replaced by its candidate, best[start] + g.
    """
    words, longest, posts = cells_nlb.shape
    best = np.zeros((longest + words, posts), cells_nlb.dtype)
    add, maximum, reduce_max = np.add, np.maximum, np.maximum.reduce
    for j, cells in enumerate(cells_nlb):
        out = best[j + longest]
        add(best[j : j + longest], cells, cells)
        reduce_max(cells, 0, None, out)
        maximum(out, best[j + longest - 1], out=out)
    return best


def decode_table(units: Units, scores_uc: AnyFloats) -> tuple[Found, AnyFloats]:
    """Decode units under the given scores (float32, or float64 for certificates)."""
    if len(units.post_offsets) == 2:
        return _decode_one(units, scores_uc)
    table = units.unit_nlb
    candidates = reduce_classes(scores_uc).take(table, mode="clip")
    best = forward_maxima(candidates)
    longest = candidates.shape[1]
    words_nb = _unit_ending_at(candidates, best)
    post, end = np.nonzero(_visited(words_nb).T)
    words = words_nb[end, post].astype(np.intp)
    unit = table[end, longest - words, post]
    rows = np.empty((len(unit), 3), np.int32)
    rows[:, 0] = end + 1 - words
    rows[:, 1] = end
    rows[:, 2] = scores_uc[unit].argmax(1)
    return Found(unit, rows, np.bincount(post, minlength=candidates.shape[2])), best[-1]


def _unit_ending_at(candidates_nlb: AnyFloats, best: AnyFloats) -> AnyInts:
    """Words of the unit the tie rule picks at each end position, 0 for none, shape (N, B)."""
    longest = candidates_nlb.shape[1]
    dtype = np.uint8 if longest < 256 else np.uint32
    reaches = candidates_nlb == best[longest:, None]
    # Slot s holds units of L - s words, so the largest is the longest unit that reaches the best.
    lengths = np.arange(longest, 0, -1, dtype=dtype)[:, None]
    words_nb: AnyInts = np.maximum.reduce(reaches * lengths, 1)
    # An entity ends exactly where best rises: equal means "no entity ends here".
    words_nb *= best[longest:] > best[longest - 1 : -1]
    return words_nb


def _visited(words_nb: AnyInts) -> Bools:
    """Where an entity on the best path ends, shape (N, B): all posts step back a word at a time."""
    words, posts = words_nb.shape
    visited = np.empty((words, posts), np.bool_)
    steps = np.maximum(words_nb, 1).astype(np.int32)
    moved = np.empty(posts, np.int32)
    cursor = np.full(posts, words - 1, np.int32)
    positions = np.arange(words, dtype=np.int32)[:, None]
    equal, multiply, subtract = np.equal, np.multiply, np.subtract
    for position, step, here in zip(positions[::-1], steps[::-1], visited[::-1], strict=True):
        equal(cursor, position, here)
        multiply(step, here, moved)
        subtract(cursor, moved, cursor)
    visited &= words_nb > 0
    return visited


def _decode_one(units: Units, scores_uc: AnyFloats) -> tuple[Found, AnyFloats]:
    """`decode_table` of a single post: NumPy's overhead at every word costs more than the sums.

    The best sum never falls from word to word, so only a unit with a gain above 0 can raise it.
    """
    gains_u = reduce_classes(scores_uc)[:-1]
    gaining = np.flatnonzero(gains_u > 0)
    best = [gains_u.dtype.type(0)]
    # At each last word where an entity ends: the unit's first word and the unit.
    ending: dict[int, tuple[int, int]] = {}
    for unit, start, end, gain in zip(
        gaining.tolist(),
        units.start_u[gaining].tolist(),
        units.end_u[gaining].tolist(),
        gains_u[gaining],
        strict=True,
    ):
        while len(best) < end + 2:
            best.append(best[-1])
        total = best[start] + gain
        longer = total == best[-1] and end in ending and start < ending[end][0]
        if total > best[-1] or longer:
            best[-1], ending[end] = total, (start, unit)
    rows: list[tuple[int, int]] = []
    chosen: list[int] = []
    stop = len(best)
    for end, (start, unit) in reversed(ending.items()):
        if end < stop:
            rows.append((start, end))
            chosen.append(unit)
            stop = start
    unit_e = np.array(chosen[::-1], np.intp)
    rows_e3 = np.empty((len(chosen), 3), np.int32)
    rows_e3[:, :2] = np.array(rows[::-1], np.int32).reshape(-1, 2)
    rows_e3[:, 2] = scores_uc[unit_e].argmax(1)
    return Found(unit_e, rows_e3, np.array([len(chosen)])), np.array(best[-1:])
