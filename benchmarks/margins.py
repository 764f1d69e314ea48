"""How sure the eager answer itself is: its lead over the best different answer."""

import numpy as np

import amlr.kernels
from amlr.runtime.bundle import Bundle
from amlr.runtime.windows import PostScores


def entity_margin(scores: PostScores, bundle: Bundle) -> float | None:
    """Margin of a post's best segmentation, in score units.

    Args:
        scores: Raw scores of the post.
        bundle: Decoder settings.

    Returns:
        Best score minus that of the best different answer; None for a linear-chain decoder.
    """
    settings, manifest = bundle.manifest.decoder, bundle.manifest
    words = len(scores.encoded.word_spans_n2)
    if settings.kind == "linear-chain" or not words:
        return None
    weight = settings.weight if settings.kind == "joint" else 0.0
    units = amlr.kernels.joint_scores(
        post_offsets=np.array([0, len(scores.units)]),
        start_u=scores.units.start_word_u,
        end_u=scores.units.end_word_u,
        unit_logits_uc=scores.unit_logits_uc,
        bias=settings.bias,
        weight=weight,
        word_offsets=np.array([0, words]) if weight else None,
        word_emissions_wy=scores.word_emissions_ny if weight else None,
        tags=manifest.tags,
        labels=manifest.labels,
        max_entity_words=settings.max_entity_words,
    )
    margin = getattr(amlr.kernels, "margin", None)
    return None if margin is None else float(margin(units, [words])[0])
