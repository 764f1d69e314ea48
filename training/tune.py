"""Choose b, w and the temperature on dev posts; they live outside the graphs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from amlr.kernels import Units, entity_marginals, segmental_decode
from amlr.runtime.manifest import DecoderSettings
from amlr.training.config import AmlrConfig
from amlr.training.predict import PostScores, decode_segments, segment_units
from amlr.training.score import Counts, Span, count_spans

_BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0)
_WEIGHTS = (0.25, 0.5, 1.0, 2.0)
_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)


def tune_joint(
    scores: Sequence[PostScores], gold: Sequence[Iterable[Span]], config: AmlrConfig
) -> tuple[DecoderSettings, Counts]:
    """Pick b and w of the joint decoder by F1: a coarse grid, then its neighbourhood.

    Args:
        scores: Raw scores of dev posts.
        gold: Entities of the same posts, in the model's names.
        config: Model settings.

    Returns:
        Settings and the counts they reach. Among equals the smallest weight, then the bias nearest
        zero wins, so that the choice does not depend on the order of the grid.
    """
    tried: dict[tuple[float, float], Counts] = {}

    def best_of(grid: Iterable[tuple[float, float]]) -> tuple[float, float]:
        for bias, weight in grid:
            if (bias, weight) not in tried and weight > 0:
                settings = DecoderSettings(kind="joint", bias=bias, weight=weight)
                tried[bias, weight] = count_spans(gold, decode_segments(scores, config, settings))
        return max(tried, key=lambda key: (tried[key].f1, -key[1], -abs(key[0])))

    bias, weight = best_of((bias, weight) for bias in _BIASES for weight in _WEIGHTS)
    bias, weight = best_of(
        (bias + shift, weight * factor) for shift in (-0.5, 0.0, 0.5) for factor in (0.7, 1.0, 1.4)
    )
    return DecoderSettings(kind="joint", bias=bias, weight=round(weight, 4)), tried[bias, weight]


def tune_segmental(
    scores: Sequence[PostScores], gold: Sequence[Iterable[Span]], config: AmlrConfig
) -> tuple[DecoderSettings, Counts]:
    """Pick b of the segmental decoder by F1."""
    tried: dict[float, Counts] = {}
    for bias in np.arange(-2.0, 4.01, 0.5).tolist():
        settings = DecoderSettings(kind="segmental", bias=bias)
        tried[bias] = count_spans(gold, decode_segments(scores, config, settings))
    bias = max(tried, key=lambda key: (tried[key].f1, -abs(key)))
    return DecoderSettings(kind="segmental", bias=bias), tried[bias]


def tune_temperature(
    scores: Sequence[PostScores],
    gold: Sequence[Iterable[Span]],
    config: AmlrConfig,
    settings: DecoderSettings,
) -> DecoderSettings:
    """Pick the temperature under which the chosen entities' probabilities fit how often they hold.

    The measure is the log loss of "this entity is in gold" over the entities the decoder returns.
    """
    units, lengths = segment_units(scores, config, settings)
    chosen, _ = segmental_decode(units, lengths)
    right, rows, columns = _outcomes(chosen, gold, config, _unit_numbers(units))
    if not len(rows):
        return settings

    def log_loss(temperature: float) -> float:
        marginals = entity_marginals(units, lengths, temperature=temperature)
        sure = np.clip(marginals[rows, columns].astype(np.float64), 1e-6, 1 - 1e-6)
        return float(-np.where(right, np.log(sure), np.log1p(-sure)).mean())

    return replace(settings, temperature=min(_TEMPERATURES, key=log_loss))


def _unit_numbers(units: Units) -> Mapping[tuple[int, int, int], int]:
    posts = np.repeat(np.arange(len(units.post_offsets) - 1), np.diff(units.post_offsets))
    keys = zip(posts.tolist(), units.start_u.tolist(), units.end_u.tolist(), strict=True)
    return {key: number for number, key in enumerate(keys)}


def _outcomes(
    chosen: Sequence[npt.NDArray[np.int32]],
    gold: Sequence[Iterable[Span]],
    config: AmlrConfig,
    numbers: Mapping[tuple[int, int, int], int],
) -> tuple[npt.NDArray[np.bool_], list[int], list[int]]:
    right: list[bool] = []
    rows: list[int] = []
    columns: list[int] = []
    for post, (entities, wanted) in enumerate(zip(chosen, gold, strict=True)):
        wanted_set = set(wanted)
        for start, end, label in entities.tolist():
            right.append((start, end + 1, config.labels[label]) in wanted_set)
            rows.append(numbers[post, start, end])
            columns.append(label)
    return np.array(right, np.bool_), rows, columns
