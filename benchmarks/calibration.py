"""Do scores mean what they say: expected calibration error of entities, before and after.

Before is temperature 1, after the bundle's own, which training fitted on other posts.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.data import BenchPost, relabelled
from amlr.benchmarks.report.records import Bin, CalibrationRecord, Reliability
from amlr.kernels import expected_calibration_error, reliability_bins
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine

_log = logging.getLogger(__name__)


def calibrate(engine: Engine, posts: Sequence[BenchPost]) -> CalibrationRecord:
    """Calibration of an engine on the labelled ones of some posts."""
    bundle = engine.bundle
    labelled = relabelled([p for p in posts if p.gold is not None], bundle.manifest.labels)
    answers = engine.pipeline.score([item.post for item in labelled])
    scored = [
        (set(item.gold or ()), answer.scores)
        for item, answer in zip(labelled, answers, strict=True)
        if answer.scores is not None
    ]

    def at(temperature: float) -> Reliability:
        settings = replace(bundle.manifest.decoder, temperature=temperature)
        decoded = Decoder.of(bundle, settings).entities([scores for _, scores in scored])
        pairs = [
            (entity.score, (entity.start, entity.end, entity.label) in gold)
            for (gold, _), entities in zip(scored, decoded, strict=True)
            for entity in entities
        ]
        # Rounding can leave a marginal a hair outside its range.
        scores = np.array([score for score, _ in pairs], np.float64).clip(0.0, 1.0)
        return reliability(scores, np.array([right for _, right in pairs], np.bool_))

    temperature = bundle.manifest.decoder.temperature
    before, after = at(1.0), at(temperature)
    summary = (
        f"Expected calibration error {before.ece:.4f} at temperature 1, {after.ece:.4f} at the "
        f"bundle's {temperature:.3g}; {after.entities} entities of {len(scored)} posts."
    )
    _log.info(summary)
    return CalibrationRecord(
        summary=summary,
        temperature=round(temperature, 4),
        posts=len(scored),
        before=before,
        after=after,
    )


def reliability(scores_e: npt.NDArray[np.float64], correct_e: npt.NDArray[np.bool_]) -> Reliability:
    """Error and bins of (count, mean score, share correct); empty bins hold None."""
    if not len(scores_e):
        return Reliability(ece=0.0, entities=0, bins=[])
    counts, means, accuracies = reliability_bins(scores_e, correct_e)
    bins: list[Bin] = [
        (int(count), round(float(mean), 4), round(float(share), 4)) if count else (0, None, None)
        for count, mean, share in zip(counts, means, accuracies, strict=True)
    ]
    error = expected_calibration_error(scores_e, correct_e)
    return Reliability(ece=round(error, 5), entities=len(scores_e), bins=bins)
