"""Choose b and w on dev posts; they live outside the graphs."""

from collections.abc import Iterable, Sequence

import numpy as np

from amlr.runtime.manifest import DecoderSettings
from amlr.training.config import AmlrConfig
from amlr.training.predict import PostScores, decode_segments
from amlr.training.score import Counts, Span, count_spans

_BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0)
_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


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
