"""Ragged units: the segments a post's words may be cut into, and their scores.

Shape letters: B posts, U units of all posts, C entity classes, N words, L longest unit in words.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import AnyInts, Bools, Floats, Indices
from amlr.kernels.validation import as_scores, check_lengths, check_unit_table


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Scored units of a batch of posts; checked once, when built.

    Attributes:
        post_offsets: Units of post b are post_offsets[b]:post_offsets[b+1]; shape (B+1,), integers.
        start_u: First word of each unit, counted within its post, shape (U,), integers.
        end_u: Last word (inclusive), shape (U,), integers; sorted by end within a post. A post has
            at most one unit for each (start, end).
        scores_uc: Score g of a unit being an entity of a class, shape (U, C), float32; "no entity"
            scores 0; -inf forbids.
        has_logits_u: False where a unit was scored by emissions alone, shape (U,); None: all True.
            Such scores carry no unit-logit error.

    Raises:
        ShapeError: Shapes disagree, offsets or ends are not sorted, a unit is empty or appears
            twice, or a score is NaN or +inf.
    """

    post_offsets: AnyInts
    start_u: AnyInts
    end_u: AnyInts
    scores_uc: Floats
    has_logits_u: Bools | None = None
    _unit_nlb: Indices | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scores = as_scores("scores_uc", self.scores_uc, (None, None))
        if not scores.shape[1]:
            raise ShapeError("scores_uc has no classes (C = 0); pass one column per entity class")
        offsets, start, end = check_unit_table(
            self.post_offsets, self.start_u, self.end_u, len(scores)
        )
        if self.has_logits_u is not None and np.shape(self.has_logits_u) != start.shape:
            raise ShapeError(
                f"has_logits_u must have shape {start.shape}, got {np.shape(self.has_logits_u)}"
            )
        set_field = object.__setattr__
        set_field(self, "scores_uc", scores)
        set_field(self, "post_offsets", offsets)
        set_field(self, "start_u", start)
        set_field(self, "end_u", end)
        set_field(self, "_unit_nlb", _lay_out(offsets, start, end))

    @property
    def unit_nlb(self) -> Indices:
        """Unit in each cell of a table of (end word, start slot, post), U where there is none.

        Slot s of end word j is the unit that starts at word j - L + 1 + s: the longest comes first,
        so the first maximum over slots is the longer unit, as the tie rule wants. The batch is the
        last axis, so one step of the recurrence is a few elementwise operations over all posts.
        Made when asked for.
        """
        if self._unit_nlb is None:
            table = _lay_out(self.post_offsets, self.start_u, self.end_u, is_sorted=True)
            object.__setattr__(self, "_unit_nlb", table)
            return table
        return self._unit_nlb

    @classmethod
    def sorted(
        cls,
        post_offsets: AnyInts,
        start_u: AnyInts,
        end_u: AnyInts,
        scores_uc: npt.ArrayLike,
        has_logits_u: Bools | None = None,
    ) -> "Units":
        """Units known to be sorted by (post, end, start), each once; only scores are checked."""
        units = object.__new__(cls)
        values = {
            "post_offsets": post_offsets,
            "start_u": start_u,
            "end_u": end_u,
            "scores_uc": as_scores("scores_uc", scores_uc, (len(start_u), None)),
            "has_logits_u": has_logits_u,
            "_unit_nlb": None,
        }
        for name, value in values.items():
            object.__setattr__(units, name, value)
        return units

    def check_lengths(self, lengths_b: npt.ArrayLike) -> Indices:
        """Word counts as intp, after checking that no unit ends past its post.

        Raises:
            ShapeError: Wrong shape, or a unit past the last word.
        """
        lengths = check_lengths(lengths_b, len(self.post_offsets) - 1)
        words = covered_words(self.post_offsets, self.end_u)
        beyond = words > lengths
        if beyond.any():
            post = int(beyond.argmax())
            raise ShapeError(
                f"a unit of post {post} ends at word {words[post] - 1}, but "
                f"lengths_b says the post has {lengths[post]} words; count words, not subwords"
            )
        return lengths


def _lay_out(offsets: AnyInts, start: AnyInts, end: AnyInts, *, is_sorted: bool = False) -> Indices:
    """Lay units out, as `Units.unit_nlb` says.

    Args:
        offsets: Units of each post, (B+1,).
        start: First word of each unit.
        end: Last word, inclusive.
        is_sorted: Whether they are known to be sorted, each once; then nothing is checked.

    Raises:
        ShapeError: Ends are not sorted within a post, or a unit appears twice.
    """
    units, posts = len(start), len(offsets) - 1
    if not units:
        return np.zeros((0, 1, posts), np.intp)
    post_u = np.arange(posts).repeat(offsets[1:] - offsets[:-1])
    if not is_sorted:
        _check_sorted(end, post_u)
    extra = end - start
    longest = int(extra.max()) + 1
    cell_u = end.astype(np.intp)
    cell_u *= longest
    cell_u += longest - 1
    cell_u -= extra
    cell_u *= posts
    cell_u += post_u
    rows = np.arange(units)
    table = np.full((int(end.max()) + 1) * longest * posts, units, np.intp)
    table[cell_u] = rows
    clash = None if is_sorted else table.take(cell_u) != rows
    if clash is not None and clash.any():
        unit = int(clash.argmax())
        raise ShapeError(
            f"post {post_u[unit]} has two units for words {start[unit]}..{end[unit]}; "
            "keep one row per (start, end)"
        )
    return table.reshape(-1, longest, posts)


def covered_words(offsets: AnyInts, end: AnyInts) -> Indices:
    """Words that each post's units reach: one more than its last end, (B,)."""
    words = np.zeros(len(offsets) - 1, np.intp)
    filled = offsets[1:] > offsets[:-1]
    words[filled] = end[offsets[1:][filled] - 1] + 1
    return words


def _check_sorted(end: AnyInts, post_u: AnyInts) -> None:
    falls = (end[1:] < end[:-1]) & (post_u[1:] == post_u[:-1])
    if falls.any():
        unit = int(falls.argmax()) + 1
        raise ShapeError(
            f"units must be sorted by end word within a post; unit {unit} ends at word "
            f"{end[unit]}, before unit {unit - 1}; sort them by (post, end, start)"
        )
