"""Decoder settings chosen on dev posts, and scores of every decoder, strict and lenient.

The settings (bias b, weight w, temperature) live outside the graphs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amlr.runtime.manifest import DecoderSettings
from amlr.training.config import AmlrConfig
from amlr.training.conll import LabelledPost
from amlr.training.predict import PostScores, decode, decode_segments, settings_for
from amlr.training.score import MODES, Counts, Mode, Span, count_spans, read_spans, score_posts
from amlr.training.scorer import Scorer
from amlr.training.temperature import calibrated

ARGMAX = "argmax"
_BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0)
_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Decoder settings chosen on dev: the joint ones also serve the linear chain.

    Attributes:
        joint: Of the joint decoder.
        segmental: Of the segmental decoder.
        calibration: How the joint temperature was fitted, and its error on the held half.
    """

    joint: DecoderSettings
    segmental: DecoderSettings
    calibration: Mapping[str, Any] = field(default_factory=dict)


def gold_spans(
    posts: Sequence[LabelledPost], rename: Mapping[str, str], mode: Mode = "strict"
) -> list[list[Span]]:
    """Gold entities in the model's names."""
    return [
        [(start, end, rename.get(c, c)) for start, end, c in read_spans(post.tags, mode)]
        for post in posts
    ]


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


def tune(
    scores: Sequence[PostScores],
    posts: Sequence[LabelledPost],
    config: AmlrConfig,
    rename: Mapping[str, str],
) -> Tuned:
    """Choose b and w by strict F1 on these posts, the temperature on the tuning half of them."""
    gold = gold_spans(posts, rename)
    # Posts of one picture stay together; without pictures equal texts do.
    ids = [post.image_id or post.text for post in posts]
    joint, _ = tune_joint(scores, gold, config)
    segmental, _ = tune_segmental(scores, gold, config)
    joint, record = calibrated(scores, gold, ids, config, joint)
    segmental, _ = calibrated(scores, gold, ids, config, segmental)
    return Tuned(joint=joint, segmental=segmental, calibration=record)


def score_decoders(
    scores: Sequence[PostScores],
    posts: Sequence[LabelledPost],
    scorer: Scorer,
    tuned: Tuned,
    rename: Mapping[str, str],
) -> dict[str, Any]:
    """Scores of each decoder, and of every argmax unit as the release predicts.

    Returns:
        Decoder name -> `strict` and `lenient` scores and the settings used.
    """
    chosen = {
        "joint": tuned.joint,
        "segmental": tuned.segmental,
        "linear-chain": settings_for("linear-chain", tuned.joint),
    }
    report: dict[str, Any] = {
        name: {
            "bias": settings.bias,
            "weight": settings.weight,
            **score_modes(posts, decode(scores, scorer, settings), rename),
        }
        for name, settings in chosen.items()
    }
    report[ARGMAX] = score_modes(posts, [s.argmax_units for s in scores], rename)
    return report


def score_modes(
    posts: Sequence[LabelledPost],
    predicted: Sequence[Iterable[Span]],
    rename: Mapping[str, str],
) -> dict[str, Any]:
    """Strict and lenient scores of predicted entities."""
    tags = [post.tags for post in posts]
    lists = [list(spans) for spans in predicted]
    return {mode: score_posts(tags, lists, mode, rename=rename) for mode in MODES}


def table(report: Mapping[str, Any]) -> str:
    """Lay decoder scores out as text, in per cent."""
    lines = [f"{'decoder':14} {'mode':8} {'P':>6} {'R':>6} {'F1':>6}   per type (F1)"]
    for name, modes in report.items():
        for mode in MODES:
            values = modes[mode]
            types = "  ".join(f"{t} {100 * v['f1']:.1f}" for t, v in values["per_type"].items())
            lines.append(
                f"{name:14} {mode:8} {100 * values['precision']:6.2f} "
                f"{100 * values['recall']:6.2f} {100 * values['f1']:6.2f}   {types}"
            )
    return "\n".join(lines)
