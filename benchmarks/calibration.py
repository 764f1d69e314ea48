"""Do scores mean what they say: expected calibration error of entities, before and after.

Before is temperature 1, after the bundle's own. Beside it stands a temperature fitted here, on the
half of the posts that a hash of their id chooses; it is the one used where the bundle has none.
All errors are of the other half.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.report.records import Bin, CalibrationRecord, Refit, Reliability
from amlr.benchmarks.systems.tiers import Tier
from amlr.errors import InputError
from amlr.kernels import (
    expected_calibration_error,
    fit_temperature,
    is_tuning_half,
    negative_log_likelihood,
    reliability_bins,
)
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.pipeline import Pipeline
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.windows import PostScores

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_log = logging.getLogger(__name__)
Scored = list[tuple[BenchPost, PostScores]]


def calibrate(tier: Tier, threads: int, posts: Sequence[BenchPost]) -> CalibrationRecord:
    """Calibration of a tier on labelled posts.

    Raises:
        InputError: Too few posts are labelled.
    """
    bundle = tier.engine.bundle
    variant = bundle.manifest.variants[tier.spec.variant]
    options = ProviderOptions(threads=threads)
    provider = open_provider(tier.spec.provider, bundle, variant, options)
    labelled = [item for item in posts if item.gold is not None]
    pipeline = Pipeline(bundle, provider, variant=variant)
    scored = [
        (item, post.scores)
        for item, post in zip(
            labelled, pipeline.score([item.post for item in labelled]), strict=True
        )
        if post.scores is not None
    ]
    pipeline.close()
    provider.close()
    return calibrate_scores(bundle, scored)


def calibrate_scores(bundle: Bundle, scored: Scored) -> CalibrationRecord:
    """Calibration of raw scores; see `calibrate`.

    Raises:
        InputError: Too few posts are labelled.
    """
    temperature, fitted = bundle.manifest.decoder.temperature, False
    tuning = is_tuning_half([item.id for item, _ in scored])
    measured = [pair for pair, is_tuning in zip(scored, tuning, strict=True) if not is_tuning]
    chosen = [pair for pair, is_tuning in zip(scored, tuning, strict=True) if is_tuning]
    if not chosen or not measured:
        raise InputError(
            f"{len(scored)} labelled posts are too few to calibrate on; give --data FILE with more"
        )
    here = fit_temperature(
        lambda t: negative_log_likelihood(*_answers(bundle, chosen, t)), tolerance=0.01
    )
    if temperature == 1.0:
        fitted, temperature = True, here
    before = _reliability(*_answers(bundle, measured, 1.0))
    after = _reliability(*_answers(bundle, measured, temperature))
    refitted = after if fitted else _reliability(*_answers(bundle, measured, here))
    origin = "fitted on the other half" if fitted else "the bundle's"
    summary = (
        f"Expected calibration error {before.ece:.4f} at temperature 1, {after.ece:.4f} at "
        f"{temperature:.3g} ({origin}); {after.entities} entities of {len(measured)} posts."
    )
    if not fitted:
        summary += f" Fitted on the other half, {here:.3g} gives {refitted.ece:.4f}."
    _log.info(summary)
    return CalibrationRecord(
        summary=summary,
        temperature=round(temperature, 4),
        fitted_here=fitted,
        posts=len(measured),
        before=before,
        after=after,
        refitted=Refit(temperature=round(here, 4), ece=refitted.ece),
    )


def _reliability(scores_e: Doubles, correct_e: Bools) -> Reliability:
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


def _answers(bundle: Bundle, scored: Scored, temperature: float) -> tuple[Doubles, Bools]:
    """Score of each predicted entity, and whether exactly it is labelled."""
    from amlr.training.conll import match_labels

    manifest = bundle.manifest
    names = sorted({label for item, _ in scored for _, _, label in item.gold or ()})
    known = match_labels(names, manifest.labels)
    settings = replace(manifest.decoder, temperature=temperature)
    decoded = Decoder.of(bundle, settings).entities([scores for _, scores in scored])
    confidence: list[float] = []
    correct: list[bool] = []
    for (item, _), entities in zip(scored, decoded, strict=True):
        gold = {(start, end, known[label]) for start, end, label in item.gold or ()}
        for entity in entities:
            # Rounding can leave a marginal a hair outside its range.
            confidence.append(min(1.0, max(0.0, entity.score)))
            correct.append((entity.start, entity.end, entity.label) in gold)
    return np.array(confidence, np.float64), np.array(correct, np.bool_)
