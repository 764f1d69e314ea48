"""Segmental Viterbi over ragged units: the best set of non-overlapping entities.

Shape letters: B posts, U units, C classes, N words, L longest unit in words, E chosen entities.

There are no transitions between segments, so classes are reduced first and the recurrence is
scalar, one addition per unit, in the dtype of the scores:

    best[0]   = 0
    best[j+1] = max(best[j], max over units ending at j of (best[start] + max_c g(unit, c)))

One tie rule, at each end position from the last word backwards: prefer "no entity ends here", then
the longer unit, then the lowest class.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.kernels.backends import load_backend
from amlr.kernels.units import Layout, Units
from amlr.kernels.validation import INF, Floats, raise_not_finite

AnyFloats = npt.NDArray[np.floating[Any]]


def segmental_decode(
    units: Units, lengths_b: npt.ArrayLike, *, backend: str = "numpy"
) -> tuple[list[npt.NDArray[np.int32]], Floats]:
    """Find the best non-overlapping units of each post.

    Args:
        units: Scored units of all posts.
        lengths_b: Words of each post, shape (B,).
        backend: "numpy", "numba" or "cuda"; every one returns the same.

    Returns:
        Per post an int32 array (E, 3) of (start word, end word inclusive, class), in text order;
        scores (B,) float32, 0 where nothing is chosen.

    Raises:
        ShapeError: A unit ends past its post's last word, or scores overflow.
        BackendUnavailableError: The backend's library is not installed.

    Example:
        >>> import numpy as np
        >>> units = Units([0, 3], [0, 0, 1], [0, 1, 1], np.float32([[2], [5], [2]]))
        >>> entities, scores = segmental_decode(units, [2])
        >>> entities[0].tolist(), scores.tolist()
        ([[0, 1, 0]], [5.0])
    """
    if backend != "numpy":
        decoded: tuple[list[npt.NDArray[np.int32]], Floats]
        decoded = load_backend(backend).segmental_decode(units, lengths_b)
        return decoded
    units.check_lengths(lengths_b)
    found, scores = decode_table(units, units.scores_uc)
    if scores.size and not float(scores.max()) < INF:
        raise_not_finite("the sum of scores_uc", scores)
    return found.split(), scores.astype(np.float32, copy=False)


class Found(NamedTuple):
    """Chosen entities of a batch, ordered by post and start.

    Attributes:
        unit_e: Chosen unit, shape (E,).
        rows_e3: (start, end, class), int32.
        counts_b: Entities of each post.
    """

    unit_e: npt.NDArray[np.intp]
    rows_e3: npt.NDArray[np.int32]
    counts_b: npt.NDArray[np.intp]

    def split(self) -> list[npt.NDArray[np.int32]]:
        """One array of rows per post."""
        stops = np.cumsum(self.counts_b).tolist()
        rows = self.rows_e3
        return [rows[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)] if stops else []


def reduce_classes(scores_uc: AnyFloats) -> AnyFloats:
    """Best class score of each unit, then -inf for the empty cells of a layout, shape (U+1,)."""
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
    """best[j], shape (L-1 + N+1, B): L-1 rows of padding, then best of the first 0..N words."""
    words, longest, posts = cells_nlb.shape
    best = np.zeros((longest + words, posts), cells_nlb.dtype)
    candidates = np.empty((longest, posts), cells_nlb.dtype)
    add, maximum, reduce_max = np.add, np.maximum, np.maximum.reduce
    for j in range(words):
        out = best[j + longest]
        add(best[j : j + longest], cells_nlb[j], candidates)
        reduce_max(candidates, 0, None, out)
        maximum(out, best[j + longest - 1], out=out)
    return best


def decode_table(units: Units, scores_uc: AnyFloats) -> tuple[Found, AnyFloats]:
    """Decode units under the given scores (float32, or float64 for certificates)."""
    layout = units.layout
    cells = reduce_classes(scores_uc).take(layout.unit_nlb, mode="clip")
    best = forward_maxima(cells)
    unit, post = _trace(layout, cells, best)
    classes = scores_uc[unit].argmax(1) if len(unit) else unit
    rows = np.empty((len(unit), 3), np.int32)
    rows[:, 0] = units.start_u[unit]
    rows[:, 1] = units.end_u[unit]
    rows[:, 2] = classes
    counts = np.bincount(post, minlength=cells.shape[2])
    return Found(unit, rows, counts), best[-1]


def _trace(
    layout: Layout, cells_nlb: AnyFloats, best: AnyFloats
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Chosen units and their posts, ordered by post and start.

    All posts step back together from entity to entity, so the cost is the largest number of
    entities in a post, not the number of words.
    """
    words, longest, posts = cells_nlb.shape
    nothing = np.zeros(0, np.intp)
    if not words:
        return nothing, nothing
    # An entity ends at word j exactly where best rises: equal means "no entity ends here".
    rises = best[longest:] > best[longest - 1 : -1]
    last_end = np.where(rises, np.arange(words)[:, None], -1)
    np.maximum.accumulate(last_end, axis=0, out=last_end)
    post = np.arange(posts)
    stop = np.full(posts, words - 1)
    slots = np.arange(longest)
    found: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    while len(post):
        end = last_end[stop, post]
        keep = end >= 0
        post, end = post[keep], end[keep]
        rows = end[:, None] + slots
        sums = best[rows, post[:, None]] + cells_nlb[end[:, None], slots, post[:, None]]
        slot = (sums == best[end + longest, post][:, None]).argmax(1)
        found.append((layout.unit_nlb[end, slot, post], post))
        start = end - (longest - 1) + slot
        keep = start > 0
        post, stop = post[keep], start[keep] - 1
    unit = np.concatenate([pair[0] for pair in reversed(found)])
    post = np.concatenate([pair[1] for pair in reversed(found)])
    order = np.argsort(post, kind="stable")
    return unit[order], post[order]
