"""Radii of a low-precision variant from the errors of its scores on calibration posts.

The numbers come from 21,278 real posts that no calibration had seen, 6,108 of them with photos. On
posts without a picture the largest error of some hundred posts is rarely passed, and no answer that
was certified within it changed. Errors depend on the picture far more than on the text, so what
counts there is how many photos were seen, and the radius is twice the largest error.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.export.parity import Answer, compare, entity_keys
from amlr.runtime.decode import Decoder
from amlr.runtime.radii import Radii, letter_blocks

# Fewer posts, or photos, say too little about the largest error.
LEAST_POSTS = 150
LEAST_PHOTOS = 50
# Of z_class - z_none, and of emissions: below them two float32 engines may differ.
FLOORS = (1e-4, 5e-5)
_DEVIATIONS = 12.0
_PICTURE_FACTOR = 2.0
Doubles = npt.NDArray[np.float64]


def fit_radii(
    exact: Sequence[Answer], low: Sequence[Answer], *, photos: int | None = None
) -> Radii | None:
    """Radii for posts of one kind.

    Args:
        exact: Answers in float32 to calibration posts of this kind.
        low: Answers of the variant to the same posts.
        photos: How many different pictures they have; None for posts without one.

    Returns:
        None where there is too little to go by, or where a post failed.
    """
    errors_p2 = compare(exact, low).errors_p2
    posts = [answer.scores for answer in exact if answer.scores is not None]
    enough = len(posts) >= LEAST_POSTS if photos is None else photos >= LEAST_PHOTOS
    if not posts or not enough or not np.isfinite(errors_p2).all():
        return None
    factor = 1.0 if photos is None else _PICTURE_FACTOR
    units, tokens = np.maximum.reduce(
        [
            factor * errors_p2.max(axis=0),
            _DEVIATIONS * _deviations(exact, low),
            np.array(FLOORS),
        ]
    ).tolist()
    return Radii(
        units=units,
        tokens=tokens,
        posts=len(posts),
        steps=max(len(post.encoded.windows[0].input_ids_t) for post in posts),
        blocks=frozenset().union(*(letter_blocks(post.encoded.text) for post in posts)),
    )


def judge_radii(
    radii: Radii, exact: Sequence[Answer], low: Sequence[Answer], decoder: Decoder
) -> dict[str, Any]:
    """Try radii on posts that they were not measured on.

    Args:
        radii: For posts of one kind.
        exact: Answers in float32 to other posts of this kind.
        low: Answers of the variant to them.
        decoder: The bundle's.

    Returns:
        For the manifest: posts, posts with an error beyond the radius, the share that the
        certificate clears, and how many it clears whose entities differ.
    """
    pairs = [
        (before, scores)
        for before, after in zip(exact, low, strict=True)
        if (scores := after.scores) is not None
    ]
    scored = [scores for _, scores in pairs]
    certified = decoder.certify(scored, [radii if radii.covers(s) else None for s in scored])
    entities = map(entity_keys, decoder.entities(scored))
    wrong = sum(
        bool(is_certified) and before.entities != found
        for (before, _), is_certified, found in zip(pairs, certified, entities, strict=True)
    )
    errors_p2 = compare(exact, low).errors_p2
    return {
        "posts": len(pairs),
        "beyond": int((errors_p2 > [radii.units, radii.tokens]).any(axis=1).sum()),
        "certified": round(float(certified.mean()) if len(certified) else 0.0, 4),
        "changed": wrong,
    }


def _deviations(exact: Sequence[Answer], low: Sequence[Answer]) -> Doubles:
    """Root mean square error of single logits and of single emissions, shape (2,)."""
    squares, counts = np.zeros(2), np.zeros(2)
    for a, b in zip(exact, low, strict=True):
        if a.scores is None or b.scores is None:
            continue
        pairs = (
            (a.scores.unit_logits_uc, b.scores.unit_logits_uc),
            (a.scores.emissions_ty, b.scores.emissions_ty),
        )
        for place, (before, after) in enumerate(pairs):
            squares[place] += np.square(before - after, dtype=np.float64).sum()
            counts[place] += before.size
    return np.sqrt(squares / np.maximum(counts, 1.0))
