"""The check at load: a few stored posts must give the eager model's answers on this host."""

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import ParityError
from amlr.runtime.bundle import Bundle, GoldenPost
from amlr.runtime.decode import Decoder
from amlr.runtime.image import load_pixels
from amlr.runtime.pipeline import Pipeline, ScoredPost
from amlr.runtime.results import Post
from amlr.runtime.scoring import own_decoder
from amlr.runtime.windows import DecodedPost, PostScores

# Pillow builds differ in their last bit of a resize; more would be another preprocessing.
PIXEL_TOLERANCE = 2 / 255


def check_golden(
    pipeline: Pipeline, tolerance: float, *, images: bool = True, entities: bool = True
) -> None:
    """Run the golden posts and compare pixels, tokens, raw scores and entities.

    Args:
        pipeline: A provider on a bundle.
        tolerance: Largest difference of raw logits, relative to the largest golden one or 1.
        images: Whether to run the posts with a picture too, which loads the image graph.
        entities: Whether the entities must agree too; not for a variant that is known to change
            some and was asked for by name.

    Raises:
        ParityError: Something differs; says what and by how much.
    """
    bundle = pipeline.bundle
    chosen = [post for post in bundle.golden if images or post.image is None]
    for golden in chosen:
        _check_pixels(bundle, golden)
    posts = [Post(golden.text, golden.image, golden.words) for golden in chosen]
    for golden, scored in zip(chosen, pipeline.score(posts), strict=True):
        _check_scores(golden, scored, tolerance, pipeline.provider.name)
        if entities:
            _check_entities(bundle, golden, scored.scores, pipeline.provider.name)
    settings = bundle.manifest.decoder
    if entities and own_decoder(pipeline.provider, settings):
        # Users get what the provider decodes itself.
        decoded = chain.from_iterable(pipeline.score_chunks(posts, decode=settings))
        for golden, post in zip(chosen, decoded, strict=True):
            found = post.decoded or post.scores
            _check_entities(bundle, golden, found, pipeline.provider.name)


def _check_pixels(bundle: Bundle, golden: GoldenPost) -> None:
    if golden.image is None or golden.pixels_chw is None:
        return
    spec = bundle.manifest.image
    pixels = load_pixels(golden.image, spec, bundle.manifest.limits)
    # Stored pixels are normalised; the tolerance is about 0..1 values.
    error = float((np.abs(pixels - golden.pixels_chw) * np.reshape(spec.std, (3, 1, 1))).max())
    if not error <= PIXEL_TOLERANCE + 1e-6:
        raise ParityError(
            f"this Pillow prepares pictures differently: off by {error * 255:.1f}/255, allowed "
            f"{PIXEL_TOLERANCE * 255:.0f}/255; install another Pillow version"
        )


def _check_scores(golden: GoldenPost, scored: ScoredPost, tolerance: float, provider: str) -> None:
    post = scored.scores
    if post is None or scored.image_used != (golden.image is not None):
        reason = scored.error or scored.warnings or "it has no words"
        raise ParityError(f"{provider} could not score the golden post {golden.text!r}: {reason}")
    pairs: dict[str, tuple[npt.NDArray[Any], float]] = {
        "input_ids": (post.sequence.input_ids_t, 0.0),
        "unit_starts": (post.units.start_step_u, 0.0),
        "unit_ends": (post.units.end_step_u, 0.0),
        "unit_logits": (post.unit_logits_uc, tolerance),
        "emissions": (post.emissions_ty, tolerance),
    }
    for name, (found, allowed) in pairs.items():
        expected = golden.arrays[name]
        if found.shape != expected.shape:
            raise ParityError(
                f"{provider}: {name} of {golden.text!r} has shape {found.shape}, expected "
                f"{expected.shape}; the tokenizer or the word rule behaves differently here"
            )
        error = float(np.abs(found - expected).max(initial=0.0))
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not error <= allowed * scale:
            raise ParityError(
                f"{provider}: {name} of {golden.text!r} is off by {error:.2g}, allowed "
                f"{allowed * scale:.2g}; a tolerance of {error / scale:.2g} would pass"
            )


def _check_entities(
    bundle: Bundle,
    golden: GoldenPost,
    post: PostScores | DecodedPost | None,
    provider: str,
) -> None:
    assert post is not None
    (found,) = Decoder.of(bundle).entities([post])
    expected = sorted((e["start"], e["end"], e["label"]) for e in golden.entities)
    actual = sorted((e.start, e.end, e.label) for e in found)
    if actual != expected:
        raise ParityError(
            f"{provider} gives {actual} for the golden post {golden.text!r}, expected {expected}"
        )
