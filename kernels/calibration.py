"""Temperature of entity scores, and how well a score predicts being right.

A score is calibrated when, of the entities scored about 0.8, about 80 % are right. One temperature
divides every g before the marginals are taken; it is fitted on one half of the development posts
and measured on the other.

Shape letters: E entities, M reliability bins, B posts.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import Bools, Doubles, Indices
from amlr.kernels.confidence import log_sum_exp, outside_scores
from amlr.kernels.units import Units

_GOLDEN = (5**0.5 - 1) / 2
# Neighbours differ by a factor of 1.3 between the default bounds.
_GRID = 31


class Reliability(NamedTuple):
    """Equal-width bins of scores in [0, 1]; means are NaN in empty bins.

    Attributes:
        counts_m: Entities in each bin.
        mean_scores_m: Their mean score.
        accuracies_m: Share of them that is right.
    """

    counts_m: Indices
    mean_scores_m: Doubles
    accuracies_m: Doubles


def reliability_bins(
    scores_e: npt.ArrayLike, correct_e: npt.ArrayLike, *, bins: int = 10
) -> Reliability:
    """Sort scored answers into bins.

    Args:
        scores_e: Scores in [0, 1], shape (E,).
        correct_e: Whether each was right, shape (E,).
        bins: Number of equal-width bins M.

    Raises:
        ShapeError: Shapes differ, or a score lies outside [0, 1].
    """
    scores, correct = _check_scores(scores_e, correct_e)
    if bins < 1:
        raise ShapeError(f"bins must be at least 1, got {bins}")
    index = np.minimum((scores * bins).astype(np.intp), bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(index, scores, bins) / counts
        accuracies = np.bincount(index, correct, bins) / counts
    return Reliability(counts, mean_scores, accuracies)


def expected_calibration_error(
    scores_e: npt.ArrayLike, correct_e: npt.ArrayLike, *, bins: int = 10
) -> float:
    """Mean over answers of |accuracy - mean score| of their bin; NaN without answers.

    Args:
        scores_e: Scores in [0, 1], shape (E,).
        correct_e: Whether each was right, shape (E,).
        bins: Number of equal-width bins.
    """
    counts, mean_scores, accuracies = reliability_bins(scores_e, correct_e, bins=bins)
    total = int(counts.sum())
    if not total:
        return float("nan")
    return float(np.nansum(counts * np.abs(accuracies - mean_scores)) / total)


def negative_log_likelihood(scores_e: npt.ArrayLike, correct_e: npt.ArrayLike) -> float:
    """Mean of -log(score) where right and -log(1 - score) where wrong."""
    scores, correct = _check_scores(scores_e, correct_e)
    if not scores.size:
        return float("nan")
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)  # float32 marginals reach 0 and 1
    return float(-np.log(np.where(correct > 0, clipped, 1 - clipped)).mean())


def segmentation_nll(
    units: Units,
    lengths_b: npt.ArrayLike,
    gold_u: npt.ArrayLike,
    *,
    temperature: float = 1.0,
) -> float:
    """Mean negative log-likelihood per post of the gold entities that are units.

    Args:
        units: Scored units of all posts.
        lengths_b: Words of each post, shape (B,).
        gold_u: Gold class of each unit, -1 where it is no entity, shape (U,).
        temperature: Divides every score.

    Raises:
        ShapeError: As `entity_marginals`, or gold_u has another shape.
    """
    units.check_lengths(lengths_b)
    gold = np.asarray(gold_u)
    if gold.shape != (len(units.scores_uc),):
        raise ShapeError(f"gold_u must have shape ({len(units.scores_uc)},), got {gold.shape}")
    scores = units.scores_uc.astype(np.float64) / temperature
    _, total_b = outside_scores(units, scores, log_sum_exp)
    chosen = np.flatnonzero(gold >= 0)
    posts = max(1, len(units.post_offsets) - 1)
    return float((total_b.sum() - scores[chosen, gold[chosen]].sum()) / posts)


def fit_temperature(
    loss: Callable[[float], float],
    *,
    low: float = 0.02,
    high: float = 50.0,
    tolerance: float = 1e-3,
) -> float:
    """Minimise a loss over the temperature: an even grid of its logarithm, then golden sections.

    The grid finds the valley, because the loss of real answers may have more than one; the search
    then runs between the neighbours of the grid's best point.

    Args:
        loss: Loss at a temperature, e.g. the NLL of entity marginals.
        low: Smallest temperature.
        high: Largest temperature.
        tolerance: Relative width at which to stop.

    Returns:
        The temperature.

    Example:
        >>> round(fit_temperature(lambda t: (t - 2.0) ** 2), 1)
        2.0
    """
    if not 0 < low < high:
        raise ShapeError(f"temperatures must satisfy 0 < low < high, got {low} and {high}")
    grid = np.linspace(np.log(low), np.log(high), _GRID)
    best = int(np.argmin([loss(float(np.exp(place))) for place in grid]))
    left, right = float(grid[max(0, best - 1)]), float(grid[min(_GRID - 1, best + 1)])
    inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
    at_inner, at_outer = loss(float(np.exp(inner))), loss(float(np.exp(outer)))
    while right - left > tolerance:
        if at_inner <= at_outer:
            right, outer, at_outer = outer, inner, at_inner
            inner = right - _GOLDEN * (right - left)
            at_inner = loss(float(np.exp(inner)))
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + _GOLDEN * (right - left)
            at_outer = loss(float(np.exp(outer)))
    return float(np.exp((left + right) / 2))


def is_tuning_half(ids: Sequence[str]) -> Bools:
    """Which posts belong to the half used for tuning: by a hash of the id, so it never changes."""
    return np.array(
        [hashlib.sha256(post.encode("utf-8")).digest()[0] % 2 == 0 for post in ids], np.bool_
    )


def _check_scores(scores_e: npt.ArrayLike, correct_e: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    scores, correct = np.asarray(scores_e, np.float64), np.asarray(correct_e, np.float64)
    if scores.ndim != 1 or scores.shape != correct.shape:
        raise ShapeError(
            f"scores_e and correct_e must be 1-D of one length, got {scores.shape} and "
            f"{correct.shape}"
        )
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise ShapeError(
            f"scores must lie in [0, 1], got {scores.min()}..{scores.max()}; pass marginals"
        )
    return scores, correct
