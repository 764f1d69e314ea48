"""Choose the temperature of entity scores on one half of dev, and measure it on the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from amlr.training.predict import PostScores, segment_units
from amlr.training.score import Span

Doubles = npt.NDArray[np.float64]
Gold = Sequence[Iterable[Span]]
# A temperature fitted to fewer entities says more about them than about the model.
LEAST_ENTITIES = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """The entities a decoder returns for some posts, and which of them are gold.

    Attributes:
        units: Scored units of the posts.
        lengths: Words of each post.
        right_e: Whether exactly the entity is in gold, shape (E,).
        rows: Its unit.
        columns: Its class.
    """

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
