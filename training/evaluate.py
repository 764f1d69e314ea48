"""Decoder settings chosen on dev posts, and scores of every decoder, strict and lenient.

The settings (bias b, weight w, temperature) live outside the graphs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels import (
    Units,
    entity_marginals,
    expected_calibration_error,
    fit_temperature,
    is_tuning_half,
    negative_log_likelihood,
    segmental_decode,
)
from amlr.runtime.manifest import DecoderSettings
from amlr.training.config import AmlrConfig
from amlr.training.conll import LabelledPost
from amlr.training.predict import PostScores, decode, decode_segments, segment_units, settings_for
from amlr.training.score import MODES, Counts, Mode, Span, count_spans, read_spans, score_posts
from amlr.training.scorer import Scorer

ARGMAX = "argmax"
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """The entities a decoder returns for some posts, and which of them are gold."""

    units: Units
    lengths: npt.NDArray[np.int32]
    right_e: npt.NDArray[np.bool_]
    rows: list[int]
    columns: list[int]

    def scores(self, temperature: float) -> Doubles:
        """Score of each entity at a temperature, shape (E,)."""
        marginals = entity_marginals(self.units, self.lengths, temperature=temperature)
        # Rounding can leave a marginal a hair outside its range.
        return marginals[self.rows, self.columns].astype(np.float64).clip(0.0, 1.0)

    def log_loss(self, temperature: float) -> float:
        """Mean negative log-likelihood of being right."""
        return negative_log_likelihood(self.scores(temperature), self.right_e)

    def error(self, temperature: float) -> float | None:
        """Expected calibration error; None without entities."""
        if not self.rows:
            return None
        return round(expected_calibration_error(self.scores(temperature), self.right_e), 5)


def calibrated(
    scores: Sequence[PostScores],
    gold: Gold,
    ids: Sequence[str],
    config: AmlrConfig,
    settings: DecoderSettings,
) -> tuple[DecoderSettings, dict[str, Any]]:
    """Fit the temperature on the half of the posts that a hash of their ids chooses.

    Args:
        scores: Raw scores of dev posts.
        gold: Their entities, in the model's names.
        ids: Their ids; posts of one id are in one half.
        config: Model settings.
        settings: Decoder settings; their temperature is not read.

    Returns:
        Settings with the temperature, and the record of the halves: posts, entities, and on the
        held half the expected calibration error at temperature 1 (`ece_before`) and at the fitted
        one (`ece_after`), None where it has no entity.
    """
    is_tuning = is_tuning_half(ids)
    tuning, held = (
        outcomes_of(list(compress(scores, half)), list(compress(gold, half)), config, settings)
        for half in (is_tuning, ~is_tuning)
    )
    temperature = best_temperature(tuning)
    record = {
        "temperature": temperature or 1.0,
        "fitted": temperature is not None,
        "tuning_posts": int(is_tuning.sum()),
        "tuning_entities": len(tuning.rows),
        "posts": int((~is_tuning).sum()),
        "entities": len(held.rows),
        "ece_before": held.error(1.0),
        "ece_after": held.error(temperature or 1.0),
    }
    return replace(settings, temperature=temperature or 1.0), record


def best_temperature(outcomes: Outcomes) -> float | None:
    """The temperature with the least log loss, to four digits; None where nothing can be fitted.

    The log loss is what is minimised, not the calibration error: it is smooth, needs no bins, and
    is least for honest scores only, where the error of a few hundred entities jumps with each that
    changes its bin. If all entities are right, or all wrong, no temperature is best.
    """
    right = outcomes.right_e
    if len(right) < LEAST_ENTITIES or right.all() or not right.any():
        return None
    return float(f"{fit_temperature(outcomes.log_loss):.4g}")


def outcomes_of(
    scores: Sequence[PostScores], gold: Gold, config: AmlrConfig, settings: DecoderSettings
) -> Outcomes:
    """Decode posts and compare with gold."""
    if not scores:
        nothing = np.zeros(0, np.int32)
        units = Units(np.zeros(1, np.int64), nothing, nothing, np.zeros((0, 1), np.float32))
        none = np.zeros(0, np.bool_)
        return Outcomes(units=units, lengths=nothing, right_e=none, rows=[], columns=[])
    units, lengths = segment_units(scores, config, settings)
    chosen, _ = segmental_decode(units, lengths)
    numbers = _unit_numbers(units)
    right: list[bool] = []
    rows: list[int] = []
    columns: list[int] = []
    for post, (entities, wanted) in enumerate(zip(chosen, gold, strict=True)):
        wanted_set = set(wanted)
        for start, end, label in entities.tolist():
            right.append((start, end + 1, config.labels[label]) in wanted_set)
            rows.append(numbers[post, start, end])
            columns.append(label)
    return Outcomes(
        units=units,
        lengths=lengths,
        right_e=np.array(right, np.bool_),
        rows=rows,
        columns=columns,
    )


def _unit_numbers(units: Units) -> Mapping[tuple[int, int, int], int]:
    posts = np.repeat(np.arange(len(units.post_offsets) - 1), np.diff(units.post_offsets))
    keys = zip(posts.tolist(), units.start_u.tolist(), units.end_u.tolist(), strict=True)
    return {key: number for number, key in enumerate(keys)}
