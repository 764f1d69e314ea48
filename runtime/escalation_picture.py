"""`image="when-needed"`: leave the picture out where the text alone has already decided.

A post is first read without its picture. If its answer leads every other by more than the margin
that the export measured, the picture is not encoded and the result says so; else the post is read
again with it. Some answers do change: the export chose the margin for a budget of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from amlr.errors import BundleError
from amlr.kernels import margin
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import build_units
from amlr.runtime.manifest import DecoderSettings, Manifest
from amlr.runtime.pipeline import Pipeline, ScoredPost
from amlr.runtime.results import Post, Problem
from amlr.runtime.windows import PostScores

NOT_NEEDED = Problem(
    code="image_not_needed", message="the text alone decided; the picture was not looked at"
)


def measured_margin(manifest: Manifest) -> float:
    """Margin above which pictures may be left out, as the export measured it.

    Raises:
        BundleError: It did not.
    """
    record = manifest.variants["fp32"].parity.get("when_needed", {})
    if not isinstance(record.get("margin"), int | float):
        raise BundleError(
            'this bundle has no margin for image="when-needed"; export it with '
            "amlr-export --precision and --calib posts that have pictures"
        )
    return float(record["margin"])


def answer_margins(
    posts: Sequence[PostScores], bundle: Bundle, settings: DecoderSettings
) -> npt.NDArray[np.float64]:
    """Score of each post's answer minus that of the best other answer."""
    if not posts:
        return np.zeros(0)
    manifest, weights = bundle.manifest, bundle.decoder
    if settings.kind != "linear-chain":
        units, lengths = build_units(posts, settings, labels=manifest.labels, tags=manifest.tags)
        return margin(units, lengths)
    lengths = np.array([len(post.encoded.word_spans_n2) for post in posts])
    emissions = np.zeros((len(posts), int(lengths.max()), len(manifest.tags)), np.float32)
    for row, post in enumerate(posts):
        emissions[row, : lengths[row]] = post.word_emissions_ny
    return margin(
        emissions,
        lengths,
        start_y=weights.start_y,
        transitions_yy=weights.transitions_yy,
        end_y=weights.end_y,
        allowed_yy=weights.allowed_yy,
    )


def score_when_needed(
    pipeline: Pipeline, posts: Sequence[Post], least_margin: float, settings: DecoderSettings
) -> Iterator[list[ScoredPost]]:
    """As `Pipeline.score_chunks`, with pictures only where the text has not decided.

    Args:
        pipeline: Scores posts.
        posts: Any number.
        least_margin: Margin from which on the picture is left out.
        settings: The decoder whose answers count.
    """
    bare = [replace(p, image=None) if isinstance(p, Post) else p for p in posts]
    start = 0
    for chunk in pipeline.score_chunks(bare):
        own = posts[start : start + len(chunk)]
        start += len(chunk)
        shown = [i for i, scored in enumerate(chunk) if scored.scores and own[i].image is not None]
        found = [scores for i in shown if (scores := chunk[i].scores) is not None]
        margins = answer_margins(found, pipeline.bundle, settings)
        again = [i for i, lead in zip(shown, margins, strict=True) if not lead > least_margin]
        for i in set(shown) - set(again):
            chunk[i] = replace(chunk[i], warnings=(NOT_NEEDED,))
        for i, scored in zip(again, pipeline.score([own[i] for i in again]), strict=True):
            chunk[i] = scored
        yield chunk
