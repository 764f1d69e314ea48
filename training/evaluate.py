"""Decoder settings chosen on dev posts, and scores of every decoder, strict and lenient.

The settings (bias b, weight w, temperature) live outside the graphs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels import (
    expected_calibration_error,
    fit_temperature,
    is_tuning_half,
    negative_log_likelihood,
)
from amlr.kernels.confidence import segment_marginals
from amlr.kernels.segmental import find_segments
from amlr.runtime.decode import Decoder
from amlr.runtime.manifest import DecoderSettings
from amlr.training.conll import LabelledPost
from amlr.training.data import Corpus
from amlr.training.predict import Prediction, decode
from amlr.training.score import MODES, Counts, Span, count_spans, score_posts

_BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0)
_WEIGHTS = (0.25, 0.5, 1.0, 2.0)
Doubles = npt.NDArray[np.float64]
Gold = Sequence[Iterable[Span]]
# A temperature fitted to fewer entities says more about them than about the model.
LEAST_ENTITIES = 10


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


def tune_joint(
    predictions: Sequence[Prediction], gold: Gold, decoder: Decoder
) -> tuple[DecoderSettings, Counts]:
    """Pick b and w of the joint decoder by F1: a coarse grid, then its neighbourhood.

    Args:
        predictions: Raw scores of dev posts.
        gold: Entities of the same posts, in the model's names.
        decoder: The model's, by any settings.

    Returns:
        Settings and the counts they reach. Among equals the smallest weight, then the bias nearest
        zero wins, so that the choice does not depend on the order of the grid.
    """
    tried: dict[tuple[float, float], Counts] = {}

    def best_of(grid: Iterable[tuple[float, float]]) -> tuple[float, float]:
        for bias, weight in grid:
            if (bias, weight) not in tried and weight > 0:
                settings = DecoderSettings(kind="joint", bias=bias, weight=weight)
                tried[bias, weight] = _counts(predictions, gold, decoder, settings)
        return max(tried, key=lambda key: (tried[key].f1, -key[1], -abs(key[0])))

    bias, weight = best_of((bias, weight) for bias in _BIASES for weight in _WEIGHTS)
    bias, weight = best_of(
        (bias + shift, weight * factor) for shift in (-0.5, 0.0, 0.5) for factor in (0.7, 1.0, 1.4)
    )
    return DecoderSettings(kind="joint", bias=bias, weight=round(weight, 4)), tried[bias, weight]


def tune_segmental(
    predictions: Sequence[Prediction], gold: Gold, decoder: Decoder
) -> tuple[DecoderSettings, Counts]:
    """Pick b of the segmental decoder by F1."""
    tried: dict[float, Counts] = {}
    for bias in np.arange(-2.0, 4.01, 0.5).tolist():
        settings = DecoderSettings(kind="segmental", bias=bias)
        tried[bias] = _counts(predictions, gold, decoder, settings)
    bias = max(tried, key=lambda key: (tried[key].f1, -abs(key)))
    return DecoderSettings(kind="segmental", bias=bias), tried[bias]


def _counts(
    predictions: Sequence[Prediction], gold: Gold, decoder: Decoder, settings: DecoderSettings
) -> Counts:
    return count_spans(gold, decode(predictions, replace(decoder, settings=settings)))


def tune(predictions: Sequence[Prediction], corpus: Corpus, decoder: Decoder) -> Tuned:
    """Choose b and w by strict F1 on these posts, the temperature on the tuning half of them."""
    gold = corpus.gold
    # Posts of one picture stay together; without pictures equal texts do.
    ids = [post.image_id or post.text for post in corpus.posts]
    joint, _ = tune_joint(predictions, gold, decoder)
    segmental, _ = tune_segmental(predictions, gold, decoder)
    joint, record = calibrated(predictions, gold, ids, replace(decoder, settings=joint))
    return Tuned(joint=joint, segmental=segmental, calibration=record)


def score_decoders(
    predictions: Sequence[Prediction], corpus: Corpus, decoder: Decoder, tuned: Tuned
) -> dict[str, Any]:
    """Scores of each decoder, and of every argmax unit as the release predicts.

    Returns:
        Decoder name -> `strict` and `lenient` scores and the settings used.
    """
    report: dict[str, Any] = {}
    for settings in (tuned.joint, tuned.segmental, replace(tuned.joint, kind="linear-chain")):
        entities = decode(predictions, replace(decoder, settings=settings))
        scores = score_modes(corpus.posts, entities, corpus.rename)
        report[settings.kind] = {"bias": settings.bias, "weight": settings.weight, **scores}
    argmax = [prediction.argmax_units for prediction in predictions]
    return report | {"argmax": score_modes(corpus.posts, argmax, corpus.rename)}


def score_modes(
    posts: Sequence[LabelledPost],
    predicted: Sequence[Iterable[Span]],
    rename: Mapping[str, str],
) -> dict[str, Any]:
    """Strict and lenient scores of predicted entities."""
    tags = [post.tags for post in posts]
    return {mode: score_posts(tags, predicted, mode, rename=rename) for mode in MODES}


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


def calibrated(
    predictions: Sequence[Prediction], gold: Gold, ids: Sequence[str], decoder: Decoder
) -> tuple[DecoderSettings, dict[str, Any]]:
    """Fit the temperature on the half of the posts that a hash of their ids chooses.

    Args:
        predictions: Raw scores of dev posts.
        gold: Their entities, in the model's names.
        ids: Their ids; posts of one id are in one half.
        decoder: Segmental or joint; its temperature is not read.

    Returns:
        Settings with the temperature, and the record of the halves: posts, entities, and on the
        held half the expected calibration error at temperature 1 (`ece_before`) and at the fitted
        one (`ece_after`), None where it has no entity.
    """
    is_tuning = is_tuning_half(ids)
    (tuning_scores, tuning_right_e), (held_scores, held_right_e) = (
        entity_scores(list(compress(predictions, half)), list(compress(gold, half)), decoder)
        for half in (is_tuning, ~is_tuning)
    )
    is_fitted = len(tuning_right_e) >= LEAST_ENTITIES
    # If all entities are right, or all wrong, no temperature is best.
    is_fitted = is_fitted and bool(tuning_right_e.any()) and not tuning_right_e.all()
    temperature = 1.0
    if is_fitted:
        # The log loss, not the calibration error: it is smooth, needs no bins, and is least for
        # honest scores only; the error of a few hundred entities jumps with each that changes bin.
        fitted = fit_temperature(
            lambda value: negative_log_likelihood(tuning_scores(value), tuning_right_e)
        )
        temperature = float(f"{fitted:.4g}")

    def held_error(value: float) -> float | None:
        if not len(held_right_e):
            return None
        return round(expected_calibration_error(held_scores(value), held_right_e), 5)

    record = {
        "temperature": temperature,
        "fitted": is_fitted,
        "tuning_posts": int(is_tuning.sum()),
        "tuning_entities": len(tuning_right_e),
        "posts": int((~is_tuning).sum()),
        "entities": len(held_right_e),
        "ece_before": held_error(1.0),
        "ece_after": held_error(temperature),
    }
    return replace(decoder.settings, temperature=temperature), record


def entity_scores(
    predictions: Sequence[Prediction], gold: Gold, decoder: Decoder
) -> tuple[Callable[[float], Doubles], npt.NDArray[np.bool_]]:
    """Decode posts; the entities' scores (E,) at a temperature, and which of them are gold (E,)."""
    if not predictions:
        return lambda temperature: np.zeros(0), np.zeros(0, np.bool_)
    units, _ = decoder.units([prediction.scores for prediction in predictions])
    segments, _ = find_segments(units)
    label_e = segments.rows_e3[:, 2]
    right_e = [
        (start, end + 1, decoder.labels[label]) in spans
        for rows, spans in zip(segments.split(), map(set, gold), strict=True)
        for start, end, label in rows.tolist()
    ]

    def at(temperature: float) -> Doubles:
        marginals_ec = segment_marginals(units, segments.unit_e, temperature)
        # Rounding can leave a marginal a hair outside its range.
        return marginals_ec[np.arange(len(label_e)), label_e].astype(np.float64).clip(0.0, 1.0)

    return at, np.array(right_e, np.bool_)
