"""Do scores mean what they say: expected calibration error of entities, before and after.

Before is temperature 1, after the bundle's own. A bundle without one gets a temperature fitted
here, on the half of the posts that a hash of their id chooses; errors are of the other half.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.data import BenchPost
from amlr.errors import InputError
from amlr.runtime.engine import Engine

BINS = 10
TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)
Floats = npt.NDArray[np.float64]


def reliability(confidence_e: Floats, correct_e: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Expected calibration error over equal-width bins, and the bins.

    Args:
        confidence_e: Score of each predicted entity, 0..1.
        correct_e: Whether exactly that entity is labelled.

    Returns:
        `ece`, `entities`, and `bins` of (count, mean confidence, share correct); empty ones None.

    Example:
        >>> reliability(np.array([0.9, 0.9]), np.array([True, False]))["ece"]
        0.4
    """
    place = np.minimum((confidence_e * BINS).astype(int), BINS - 1)
    bins: list[Any] = []
    total = 0.0
    for number in range(BINS):
        inside = place == number
        count = int(inside.sum())
        if not count:
            bins.append([0, None, None])
            continue
        confidence, correct = float(confidence_e[inside].mean()), float(correct_e[inside].mean())
        total += count * abs(confidence - correct)
        bins.append([count, round(confidence, 4), round(correct, 4)])
    entities = len(confidence_e)
    return {"ece": round(total / max(1, entities), 4), "entities": entities, "bins": bins}


def calibrate(
    engine: Engine, posts: Sequence[BenchPost], say: Callable[[str], None]
) -> dict[str, Any]:
    """Calibration of an engine on labelled posts.

    Raises:
        InputError: No post is labelled.
    """
    labelled = [item for item in posts if item.gold is not None]
    if not labelled:
        raise InputError("calibration needs labelled posts; give --data FILE in CoNLL form")
    settings = engine.decoder
    try:
        temperature, measured, fitted = settings.temperature, labelled, False
        if temperature == 1.0:
            fitted = True
            tuning = [item for item in labelled if _half(item.id) == 0]
            measured = [item for item in labelled if _half(item.id) == 1]
            if not tuning or not measured:
                raise InputError(f"{len(labelled)} labelled posts are too few to calibrate on")
            say(f"fitting a temperature on {len(tuning)} posts")
            temperature = min(
                TEMPERATURES, key=lambda t: reliability(*_scores(engine, tuning, t))["ece"]
            )
        before = reliability(*_scores(engine, measured, 1.0))
        after = reliability(*_scores(engine, measured, temperature))
    finally:
        engine.decoder = settings
    origin = "fitted on the other half" if fitted else "the bundle's"
    summary = (
        f"Expected calibration error {before['ece']:.4f} at temperature 1, {after['ece']:.4f} at "
        f"{temperature:g} ({origin}); {after['entities']} entities of {len(measured)} posts."
    )
    say(summary)
    return {
        "summary": summary,
        "temperature": temperature,
        "fitted_here": fitted,
        "posts": len(measured),
        "before": before,
        "after": after,
    }


def _half(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] & 1


def _scores(
    engine: Engine, posts: Sequence[BenchPost], temperature: float
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    from amlr.training.conll import match_labels

    engine.decoder = replace(engine.decoder, temperature=temperature)
    names = sorted({label for item in posts for _, _, label in item.gold or ()})
    known = match_labels(names, engine.manifest.labels)
    confidence: list[float] = []
    correct: list[bool] = []
    results = engine.tag_batch([item.post for item in posts])
    for item, result in zip(posts, results, strict=True):
        gold = {(start, end, known[label]) for start, end, label in item.gold or ()}
        for entity in result.entities:
            confidence.append(entity.score)
            correct.append((entity.start, entity.end, entity.label) in gold)
    return np.array(confidence, np.float64), np.array(correct, np.bool_)
