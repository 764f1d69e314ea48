"""Marginal probabilities of tags, tag spans and entities (forward-backward, in float64).

Shape letters: B batch, T steps, Y tags, U units, C classes, N words, L longest unit, E spans.
"""

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.segmental import AnyFloats
from amlr.kernels.units import Units
from amlr.kernels.validation import Chain, Doubles, Floats, check_chain, mask_padding


def log_sum_exp(values: AnyFloats, axis: int) -> Doubles:
    """log(sum(exp(values))) over an axis; -inf where everything is -inf."""
    peak = values.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        total: Doubles = np.log(np.exp(values - safe).sum(axis=axis))
    return total + safe.squeeze(axis)


def entity_marginals(units: Units, lengths_b: npt.ArrayLike, *, temperature: float = 1.0) -> Floats:
    """Probability that each unit is a chosen segment of each class.

    The distribution over segmentations is exp(sum of g / temperature), normalised.

    Args:
        units: Scored units of all posts.
        lengths_b: Words of each post, shape (B,).
        temperature: Above 1 flattens the distribution, below 1 sharpens it.

    Returns:
        Probabilities (U, C), float32.

    Raises:
        ShapeError: A unit ends past its post, or the temperature is not positive and finite.
    """
    units.check_lengths(lengths_b)
    if not 0 < temperature < np.inf:
        raise ShapeError(f"temperature must be positive and finite, got {temperature}")
    scores = units.scores_uc.astype(np.float64) / temperature
    table = units.layout.unit_nlb
    words, longest, _ = table.shape
    if not scores.size:
        return np.zeros(scores.shape, np.float32)
    cells = np.append(log_sum_exp(scores, 1), -np.inf).take(table)
    forward, backward = _segment_sums(cells)
    inner = forward[:-1]
    rows = np.arange(words)[:, None] + np.arange(longest)
    outside = inner[rows] + backward[1 : words + 1, None, :] - forward[-1]
    outside_u = np.empty(len(scores) + 1)
    outside_u[table] = outside
    return np.exp(outside_u[:-1, None] + scores).astype(np.float32)


def backward_rows(end_words: int, longest: int, start: int) -> slice:
    """Rows of a (N*L) table that hold the units starting at a word, shortest first."""
    first = start * longest + longest - 1
    count = min(longest, end_words - start)
    step = max(longest - 1, 1)
    return slice(first, first + (count - 1) * step + 1, step)


def _segment_sums(cells_nlb: Doubles) -> tuple[Doubles, Doubles]:
    """Forward log-sums (L-1 + N+1, B), padded in front, and backward log-sums (N+1, B)."""
    words, longest, posts = cells_nlb.shape
    forward = np.zeros((longest + words, posts))
    for j in range(words):
        parts = np.concatenate(
            [forward[j + longest - 1 : j + longest], forward[j : j + longest] + cells_nlb[j]]
        )
        forward[j + longest] = log_sum_exp(parts, 0)
    backward = np.zeros((words + 1, posts))
    flat = cells_nlb.reshape(words * longest, posts)
    for j in range(words - 1, -1, -1):
        starting = flat[backward_rows(words, longest, j)]
        following = backward[j + 1 : j + 1 + len(starting)]
        backward[j] = log_sum_exp(
            np.concatenate([backward[j + 1 : j + 2], starting + following]), 0
        )
    return forward, backward


def tag_marginals(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
) -> Floats:
    """Probability of each tag at each step under a linear chain.

    Args:
        emissions_bty: Tag scores, shape (B, T, Y), float32 or float16.
        lengths_b: Valid steps, shape (B,).
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        Probabilities (B, T, Y) float32, 0 past the end and where no path is allowed at all.

    Raises:
        ShapeError: As `viterbi_decode`.
    """
    chain = mask_padding(
        check_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    )
    forward, backward, total = chain_sums(chain)
    with np.errstate(invalid="ignore"):
        marginals = np.exp(forward + backward - total[:, None, None])
    valid = np.arange(forward.shape[1]) < chain.lengths_b[:, None]
    marginals[~valid | np.isneginf(total)[:, None]] = 0
    return marginals.astype(np.float32)


def chain_sums(chain: Chain) -> tuple[Doubles, Doubles, Doubles]:
    """Forward and backward log-sums (B, T, Y) and the log of the partition sum (B,), float64."""
    emissions = chain.emissions_bty.astype(np.float64)
    transitions = chain.transitions_yy.astype(np.float64)
    lengths, end = chain.lengths_b, chain.end_y.astype(np.float64)
    batch, steps, tags = emissions.shape
    forward = np.empty((batch, steps, tags))
    backward = np.empty((batch, steps, tags))
    if not steps or not batch:
        return forward, backward, np.zeros(batch)
    forward[:, 0] = chain.start_y + emissions[:, 0]
    for t in range(1, steps):
        forward[:, t] = log_sum_exp(forward[:, t - 1, :, None] + transitions, 1) + emissions[:, t]
    backward[:, -1] = end
    for t in range(steps - 2, -1, -1):
        onward = transitions + (emissions[:, t + 1] + backward[:, t + 1])[:, None, :]
        backward[:, t] = np.where((lengths == t + 1)[:, None], end, log_sum_exp(onward, 2))
    total = log_sum_exp(forward[:, 0] + backward[:, 0], 1)
    return forward, backward, np.where(lengths == 0, 0.0, total)
