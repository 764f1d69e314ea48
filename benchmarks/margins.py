"""How sure the eager answer itself is: its lead over the best different answer."""

import numpy as np

from amlr.kernels import joint_scores, margin
from amlr.runtime.bundle import Bundle
from amlr.runtime.windows import PostScores


def entity_margin(scores: PostScores, bundle: Bundle) -> float | None:
    """Margin of a post's best answer, in score units.

    Args:
        scores: Raw scores of the post.
        bundle: Decoder settings and weights.

    Returns:
        Best score minus that of the best different answer; None where there is no other answer.
    """
    settings, manifest, weights = bundle.manifest.decoder, bundle.manifest, bundle.decoder
    words = len(scores.encoded.word_spans_n2)
    if not words:
        return None
    if settings.kind == "linear-chain":
        lead = margin(
            scores.word_emissions_ny[None],
            [words],
            start_y=weights.start_y,
            transitions_yy=weights.transitions_yy,
            end_y=weights.end_y,
            allowed_yy=weights.allowed_yy,
        )
    else:
        weight = settings.weight if settings.kind == "joint" else 0.0
        units = joint_scores(
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
        lead = margin(units, [words])
    value = float(lead[0])
    return value if np.isfinite(value) else None
