"""Scores of one post in the public form."""

import numpy as np
import numpy.typing as npt

from amlr.runtime.bundle import Bundle
from amlr.runtime.pipeline import ScoredPost
from amlr.runtime.results import Raw


def raw_of(post: ScoredPost, bundle: Bundle) -> Raw:
    """The model's own numbers for one post; empty arrays where it has no words.

    Raises:
        AmlrError: Why the post could not be scored.
    """
    if post.error is not None:
        raise post.error
    manifest, scores = bundle.manifest, post.scores
    nothing = np.zeros(0, np.int32)
    if scores is None:
        logits = np.zeros((0, len(manifest.classes)), np.float32)
        emissions = np.zeros((0, len(manifest.tags)), np.float32)
    else:
        logits, emissions = scores.unit_logits_uc, scores.emissions_ty
    return Raw(
        input_ids=scores.sequence.input_ids_t if scores else nothing.astype(np.int64),
        token_offsets=(
            bundle.encoder.token_offsets(scores.encoded) if scores else nothing.reshape(0, 2)
        ),
        unit_starts=scores.units.start_step_u if scores else nothing,
        unit_ends=scores.units.end_step_u if scores else nothing,
        unit_probs=_softmax(logits),
        unit_logits=logits,
        emissions=emissions,
        classes=manifest.classes,
        tags=manifest.tags,
        image_used=post.image_used,
    )


def _softmax(logits_uc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = np.exp(logits_uc - logits_uc.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities: npt.NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
