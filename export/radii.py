"""Radii of a low-precision variant from the errors of its scores on calibration posts.

The numbers come from 21,278 real posts that no calibration had seen, 6,108 of them with photos. On
posts without a picture the largest error of some hundred posts is rarely passed, and no answer that
was certified within it changed. Errors depend on the picture far more than on the text, so what
counts there is how many photos were seen, and the radius is twice the largest error.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amlr.export.parity import Answer, compare, entity_keys
from amlr.runtime.decode import Decoder
from amlr.runtime.image import ImageLimits, content_key, read_source
from amlr.runtime.radii import PICTURE, TEXT, Radii, letter_blocks
from amlr.runtime.results import Post
from amlr.runtime.windows import PostScores

# Fewer posts, or photos, say too little about the largest error.
LEAST_POSTS = 150
LEAST_PHOTOS = 50
# Of z_class - z_none, and of emissions: below them two float32 engines may differ.
FLOORS = (1e-4, 5e-5)
_DEVIATIONS = 12.0
_PICTURE_FACTOR = 2.0
log = logging.getLogger(__name__)
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Answers to the same posts, all of one kind: with a picture, or without.

    Attributes:
        exact: In float32.
        low: Of the variant.
    """

    exact: list[Answer]
    low: list[Answer]

    def where(self, has_picture: bool) -> Self:
        """The part in which a picture took part, or did not."""
        rows = [row for row, a in enumerate(self.exact) if a.image_used == has_picture]
        return type(self)(exact=[self.exact[r] for r in rows], low=[self.low[r] for r in rows])


def by_kind(pair: Pair) -> dict[str, Pair]:
    """Posts without and with a picture."""
    return {TEXT: pair.where(False), PICTURE: pair.where(True)}


def radii_record(
    tuning: Mapping[str, Pair],
    held_out: Mapping[str, Pair],
    decoder: Decoder,
    *,
    given: bool,
    photos: int,
    reserve: float = 1.0,
) -> dict[str, Any]:
    """What the manifest says of a variant's certificates.

    Args:
        tuning: By kind of post; the radii come from these.
        held_out: By kind of post; the radii are tried on these.
        decoder: The bundle's.
        given: Whether the user gave the posts; invented ones are of no kind that users send.
        photos: Different pictures among the tuning posts.
        reserve: Factor on the largest error, for errors that were emulated.

    Returns:
        `calibration`, `radii` and `certificates`.
    """
    radii: dict[str, Radii] = {}
    # What a text may be like does not depend on whether it has a picture, nor on its half.
    texts = [a.scores for half in (tuning, held_out) for p in half.values() for a in p.exact]
    seen = [scores for scores in texts if scores is not None and len(scores.encoded.windows) == 1]
    for kind, pair in tuning.items() if given else ():
        photos_of_kind = None if kind == TEXT else photos
        fitted = fit_radii(pair, seen, photos=photos_of_kind, reserve=reserve)
        if fitted is not None:
            radii[kind] = fitted
    certificates = {
        kind: judge_radii(radii[kind], pair, decoder)
        for kind, pair in held_out.items()
        if kind in radii
    }
    for kind, judged in certificates.items():
        log.info(
            f"    {kind}: {100 * judged['certified']:.1f} % of {judged['posts']} posts certified, "
            f"{judged['beyond']} beyond the radius, {judged['changed']} wrong"
        )
    counts = {kind: len(tuning[kind].exact) for kind in (TEXT, PICTURE)}
    needed = {
        TEXT: f"{counts[TEXT]} such posts in the calibration half, {LEAST_POSTS} are needed",
        PICTURE: f"{photos} photos in the calibration half, {LEAST_PHOTOS} are needed",
    }
    for kind, reason in needed.items():
        if kind not in radii:
            reason = reason if given else "invented posts are not like yours: give --calib"
            log.info(f"    {kind}: nothing certified; {reason}")
    return {
        "calibration": {
            "given": given,
            "posts": sum(counts.values()),
            "with_picture": counts[PICTURE],
            "photos": photos,
        },
        "radii": {kind: fitted.to_dict() for kind, fitted in radii.items()},
        "certificates": certificates,
    }


def count_photos(posts: Sequence[Post], exact: Sequence[Answer], limits: ImageLimits) -> int:
    """Different pictures that took part."""
    pictures = [p.image for p, a in zip(posts, exact, strict=True) if a.image_used]
    return len({content_key(read_source(p, limits), limits) for p in pictures if p})


def fit_radii(
    pair: Pair, seen: Sequence[PostScores], *, photos: int | None, reserve: float = 1.0
) -> Radii | None:
    """Radii for posts of one kind.

    Args:
        pair: Answers to calibration posts of this kind.
        seen: All calibration posts of one window: what texts the radii hold for.
        photos: How many different pictures they have; None for posts without one.
        reserve: Factor on the largest error.

    Returns:
        None where there is too little to go by, or where a post failed.
    """
    errors_p2 = compare(pair.exact, pair.low).errors_p2
    posts = [answer.scores for answer in pair.exact if answer.scores is not None]
    enough = len(posts) >= LEAST_POSTS if photos is None else photos >= LEAST_PHOTOS
    if not posts or not enough or not np.isfinite(errors_p2).all():
        return None
    factor = reserve * (1.0 if photos is None else _PICTURE_FACTOR)
    units, tokens = np.maximum.reduce(
        [
            factor * errors_p2.max(axis=0),
            _DEVIATIONS * _deviations(pair),
            np.array(FLOORS),
        ]
    ).tolist()
    return Radii(
        units=units,
        tokens=tokens,
        posts=len(posts),
        steps=max((len(post.sequence.input_ids_t) for post in seen), default=0),
        blocks=frozenset().union(*(letter_blocks(post.encoded.text) for post in seen)),
    )


def judge_radii(radii: Radii, pair: Pair, decoder: Decoder) -> dict[str, Any]:
    """Try radii on posts that they were not measured on.

    Args:
        radii: For posts of one kind.
        pair: Answers to other posts of this kind.
        decoder: The bundle's.

    Returns:
        For the manifest: posts, posts with an error beyond the radius, the share that the
        certificate clears, and how many it clears whose entities differ.
    """
    pairs = [
        (before, scores)
        for before, after in zip(pair.exact, pair.low, strict=True)
        if (scores := after.scores) is not None
    ]
    scored = [scores for _, scores in pairs]
    certified = decoder.certify(
        scored, [radii if radii.covers(s.encoded) else None for s in scored]
    )
    entities = map(entity_keys, decoder.entities(scored))
    wrong = sum(
        bool(is_certified) and before.entities != found
        for (before, _), is_certified, found in zip(pairs, certified, entities, strict=True)
    )
    errors_p2 = compare(pair.exact, pair.low).errors_p2
    return {
        "posts": len(pairs),
        "beyond": int((errors_p2 > [radii.units, radii.tokens]).any(axis=1).sum()),
        "certified": round(float(certified.mean()) if len(certified) else 0.0, 4),
        "changed": wrong,
    }


def _deviations(pair: Pair) -> Doubles:
    """Root mean square error of single logits and of single emissions, shape (2,)."""
    squares, counts = np.zeros(2), np.zeros(2)
    for a, b in zip(pair.exact, pair.low, strict=True):
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
