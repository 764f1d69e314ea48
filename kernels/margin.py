"""Exact margins: how much the best answer beats the best different one.

Shape letters: B batch or posts, T steps, Y tags, U units, C classes.
"""

from typing import overload

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.confidence import chain_sums, maximum, outside_scores
from amlr.kernels.segmental import decode_table
from amlr.kernels.units import Units
from amlr.kernels.validation import Doubles, check_chain, check_lengths, mask_padding


@overload
def margin(scores: Units, lengths_b: npt.ArrayLike) -> Doubles: ...


@overload
def margin(
    scores: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
) -> Doubles: ...


def margin(
    scores: Units | npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike | None = None,
    transitions_yy: npt.ArrayLike | None = None,
    end_y: npt.ArrayLike | None = None,
    allowed_yy: npt.ArrayLike | None = None,
) -> Doubles:
    """Score of the best answer minus that of the best different answer.

    Args:
        scores: `Units` for segmental and joint decoding, or emissions (B, T, Y) for a linear chain,
            which needs the other arguments too (as in `viterbi_decode`).
        lengths_b: Words of each post, or steps of each sequence, shape (B,).
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        Margins (B,), float64, from float64 sums: 0 where two answers tie, inf where there is no
        other answer, 0 where no path is allowed at all.

    Raises:
        ShapeError: As the decoders.
    """
    if isinstance(scores, Units):
        return _segmental_margin(scores, lengths_b)
    if start_y is None or transitions_yy is None or end_y is None:
        raise ShapeError("a linear chain needs start_y, transitions_yy and end_y")
    chain = mask_padding(check_chain(scores, lengths_b, start_y, transitions_yy, end_y, allowed_yy))
    batch, steps, tags = chain.emissions_bty.shape
    if tags < 2 or not batch or not steps:
        return np.full(batch, np.inf)
    forward, backward, _ = chain_sums(chain, maximum)
    # A different path has another tag at some step; there it scores at most the second best of the
    # paths through each tag.
    best_two = np.partition(forward + backward, tags - 2, axis=2)[:, :, -2:]
    with np.errstate(invalid="ignore"):
        gaps = best_two[:, :, 1] - best_two[:, :, 0]
    gaps[np.isneginf(best_two[:, :, 1])] = 0
    gaps[np.arange(steps) >= chain.lengths_b[:, None]] = np.inf
    return -maximum(-gaps, 1)


def _segmental_margin(units: Units, lengths_b: npt.ArrayLike) -> Doubles:
    """min(weakest chosen unit, best minus the best segmentation with a unit not chosen)."""
    units.check_lengths(lengths_b)
    posts = len(units.post_offsets) - 1
    scores = units.scores_uc.astype(np.float64)
    margins = np.full(posts, np.inf)
    if not len(scores):
        return margins
    outside, _ = outside_scores(units, scores, maximum)
    found, _ = decode_table(units, scores)
    classes = found.rows_e3[:, 2]
    gaps: Doubles = -(outside[:, None] + scores)
    gaps[found.unit_e, classes] = scores[found.unit_e, classes]
    filled = np.diff(units.post_offsets) > 0
    starts = units.post_offsets[:-1][filled].astype(np.intp)
    margins[filled] = np.minimum.reduceat(gaps.min(1), starts)
    return margins.clip(min=0.0)  # rounding may leave -1e-16 at a tie


def required_margin(
    lengths_b: npt.ArrayLike,
    *,
    score_error: float = 0.0,
    unit_logit_error: float = 0.0,
    token_error: float = 0.0,
    weight: float = 1.0,
) -> Doubles:
    """The margin that suffices: above it, no error within the radii can change the answer.

    Loose: `box_redecode` certifies everything this does, and more.

    Args:
        lengths_b: Words (steps) of each post, shape (B,).
        score_error: Largest error of any g.
        unit_logit_error: Largest error of any raw unit logit.
        token_error: Largest error of any emission.
        weight: w of the joint score; 1 for a linear chain.

    Returns:
        Margins (B,): N * (2 score_error + 3 unit_logit_error + 2 weight token_error).
    """
    lengths = check_lengths(lengths_b, len(np.asarray(lengths_b)))
    errors = np.array([score_error, unit_logit_error, weight * token_error], np.float64)
    if not (np.all(errors >= 0) and np.all(np.isfinite(errors))):
        raise ShapeError(f"errors must be finite and not negative, got {errors.tolist()}")
    return lengths.astype(np.float64) * float(errors @ np.array([2.0, 3.0, 2.0]))
