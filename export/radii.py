"""Radii of a low-precision variant from the errors of its scores on calibration posts.

The numbers come from 21,278 real posts that no calibration had seen, 6,108 of them with photos. On
posts without a picture the largest error of some hundred posts is rarely passed, and no answer that
was certified within it changed. Errors depend on the picture far more than on the text, so what
counts there is how many photos were seen, and the radius is twice the largest error.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amlr.export.parity import Answer, compare, entity_keys
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.image import ImageLimits, content_key, read_source
from amlr.runtime.radii import PICTURE, PICTURE_ONLY, TEXT, Radii, letter_blocks
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two answers to each of some posts.

    Attributes:
        posts: The posts.
        exact: Answers in float32.
        low: Answers of the variant.
        picture_only: Answers of the variant with the picture encoder alone in low precision, where
            it is served so too.
    """

    posts: Sequence[Post]
    exact: Sequence[Answer]
    low: Sequence[Answer]
    picture_only: Sequence[Answer] = ()

    def by_kind(self) -> dict[str, "Pair"]:
        """Posts without and with a picture; and the latter with the picture alone low."""

        def part(low: Sequence[Answer], has_picture: bool) -> "Pair":
            rows = [row for row, a in enumerate(self.exact) if a.image_used == has_picture]
            return Pair(
                posts=[self.posts[row] for row in rows],
                exact=[self.exact[row] for row in rows],
                low=[low[row] for row in rows],
            )

        kinds = {TEXT: part(self.low, False), PICTURE: part(self.low, True)}
        return kinds | ({PICTURE_ONLY: part(self.picture_only, True)} if self.picture_only else {})


def radii_record(
    bundle: Bundle, tuning: Pair, held_out: Pair, *, given: bool, reserve: float = 1.0
) -> dict[str, Any]:
    """What the manifest says of a variant's certificates.

    Args:
        bundle: Its decoder and limits count.
        tuning: The radii come from these posts.
        held_out: The radii are tried on these.
        given: Whether the user gave the posts; invented ones are of no kind that users send.
        reserve: Factor on the largest error, for errors that were emulated.

    Returns:
        `calibration`, `radii` and `certificates`.
    """
    radii: dict[str, Radii] = {}
    kinds, decoder = tuning.by_kind(), Decoder.of(bundle)
    photos = count_photos(tuning, bundle.manifest.limits)
    # What a text may be like does not depend on whether it has a picture, nor on its half.
    texts = [answer.scores for half in (tuning, held_out) for answer in half.exact]
    seen = [scores for scores in texts if scores is not None and len(scores.encoded.windows) == 1]
    for kind, pair in kinds.items() if given else ():
        photos_of_kind = None if kind == TEXT else photos
        fitted = fit_radii(pair, seen, photos=photos_of_kind, reserve=reserve)
        if fitted is not None:
            radii[kind] = fitted
    certificates = {
        kind: judge_radii(radii[kind], pair, decoder)
        for kind, pair in held_out.by_kind().items()
        if kind in radii
    }
    for kind, judged in certificates.items():
        log.info(
            f"    {kind}: {100 * judged['certified']:.1f} % of {judged['posts']} posts certified, "
            f"{judged['beyond']} beyond the radius, {judged['changed']} wrong"
        )
    counts = {kind: len(kinds[kind].posts) for kind in (TEXT, PICTURE)}
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


def count_photos(pair: Pair, limits: ImageLimits) -> int:
    """Different pictures that took part."""
    pictures = [p.image for p, a in zip(pair.posts, pair.exact, strict=True) if a.image_used]
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
    compared = compare(pair.exact, pair.low)
    errors_p2 = compared.errors_p2
    posts = [answer.scores for answer in pair.exact if answer.scores is not None]
    enough = len(posts) >= LEAST_POSTS if photos is None else photos >= LEAST_PHOTOS
    if not posts or not enough or not np.isfinite(errors_p2).all():
        return None
    factor = reserve * (1.0 if photos is None else _PICTURE_FACTOR)
    units, tokens = np.maximum.reduce(
        [
            factor * errors_p2.max(axis=0),
            _DEVIATIONS * compared.deviations_2,
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
