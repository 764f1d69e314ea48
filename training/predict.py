"""Raw scores of whole posts from the eager model, and entities from them.

Shape letters: N words, U word-aligned units of a post, C classes, Y tags.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amlr.kernels import Units, joint_scores, segmental_decode, viterbi_decode
from amlr.runtime.batching import Scores
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.windows import merge_windows
from amlr.training.config import AmlrConfig
from amlr.training.data import Example, Pictures, collate, length_batches
from amlr.training.score import Span, read_spans
from amlr.training.scorer import Scorer

Floats = npt.NDArray[np.float32]
Ints32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostScores:
    """The model's own numbers for one post.

    Attributes:
        start_u: First word of each unit.
        end_u: Last word of each unit, inclusive; sorted.
        unit_logits_uc: Raw logits, "none" first.
        emissions_ny: Token head at each word's first subword.
        argmax_units: Every unit whose best class is an entity, overlaps kept, as the release
            predicts. Units that cut words, scored only on request, have negative positions, so
            that they match no gold entity.
    """

    start_u: Ints32
    end_u: Ints32
    unit_logits_uc: Floats
    emissions_ny: Floats
    argmax_units: tuple[Span, ...]

    @property
    def is_finite(self) -> bool:
        """Whether no number overflowed."""
        return bool(np.isfinite(self.unit_logits_uc).all() and np.isfinite(self.emissions_ny).all())


@torch.no_grad()
def predict(
    scorer: Scorer,
    examples: Sequence[Example],
    image_ids: Sequence[str | None],
    pictures: Pictures | None,
    *,
    pad_id: int,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> list[PostScores]:
    """Score posts.

    Args:
        scorer: The model; put into inference mode and back.
        examples: Windows of the posts, as `make_examples` returns them.
        image_ids: Picture of each post.
        pictures: Where pictures come from; None scores every post without one.
        pad_id: Padding token.
        batch_size: Windows in one batch.
        device: Where the model is.
    """
    was_training = scorer.training
    scorer.eval()
    config = scorer.model.config
    parts: list[list[_Part]] = [[] for _ in image_ids]
    for indices in length_batches([len(e) for e in examples], batch_size):
        chosen = [examples[i] for i in indices]
        images = [pictures.get(image_ids[e.post]) if pictures else None for e in chosen]
        batch = collate(chosen, config.scales, pad_id, images).to(device)
        output = scorer(batch)
        for row, example in enumerate(chosen):
            part = _Part(
                example=example,
                logits_sc=_numpy(output.unit_logits[row, : len(example.target_s)]),
                emissions_ny=_numpy(output.emissions[row, : len(example.tags_n)]),
            )
            parts[example.post].append(part)
    scorer.train(was_training)
    return [_join(windows, config) for windows in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Scores of one window."""

    example: Example
    logits_sc: Floats
    emissions_ny: Floats


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array


def _join(parts: Sequence[_Part], config: AmlrConfig) -> PostScores:
    """Scores of a post out of its windows, merged as the runtime merges them."""
    parts = sorted(parts, key=lambda part: part.example.window.word_start)
    merged = merge_windows(
        parts[0].example.encoded,
        [part.example.units for part in parts],
        [
            Scores(
                unit_logits_mc=part.logits_sc[part.example.aligned_s],
                emissions_ny=_at_steps(part),
            )
            for part in parts
        ],
        scales=config.scales,
        every=False,
    )
    units, logits_uc = merged.units, merged.unit_logits_uc
    found = [
        (int(start), int(end) + 1, config.classes[best])
        for start, end, best in zip(
            units.start_word_u, units.end_word_u, logits_uc.argmax(1), strict=True
        )
        if best
    ]
    for part in parts:
        found += _cut_words(part, config)
    return PostScores(
        start_u=units.start_word_u,
        end_u=units.end_word_u,
        unit_logits_uc=logits_uc,
        emissions_ny=merged.word_emissions_ny,
        argmax_units=tuple(found),
    )


def _at_steps(part: _Part) -> Floats:
    """Emissions of all steps; those no word begins at are never read."""
    emissions = np.zeros((len(part.example), part.emissions_ny.shape[1]), np.float32)
    emissions[part.example.window.first_n] = part.emissions_ny
    return emissions


def _cut_words(part: _Part, config: AmlrConfig) -> list[Span]:
    """Entities among the units that cut words, at negative positions."""
    example, best_s = part.example, part.logits_sc.argmax(1)
    is_cut = np.ones(len(best_s), np.bool_)
    is_cut[example.aligned_s] = False
    offset = 1 + 1000 * example.window.word_start
    return [
        (
            -offset - int(example.start_step_s[place]),
            -int(example.scale_s[place]),
            config.classes[best_s[place]],
        )
        for place in np.flatnonzero((best_s > 0) & is_cut).tolist()
    ]


def segment_units(
    scores: Sequence[PostScores], config: AmlrConfig, settings: DecoderSettings
) -> tuple[Units, Ints32]:
    """Units of many posts with their scores g, and each post's number of words."""
    lengths = np.array([len(s.emissions_ny) for s in scores], np.int32)
    counts = np.array([len(s.start_u) for s in scores], np.int64)
    is_joint = settings.kind == "joint"
    units = joint_scores(
        post_offsets=np.concatenate([[0], np.cumsum(counts)]),
        start_u=np.concatenate([s.start_u for s in scores]),
        end_u=np.concatenate([s.end_u for s in scores]),
        unit_logits_uc=np.concatenate([s.unit_logits_uc for s in scores]),
        bias=settings.bias,
        weight=settings.weight if is_joint else 0.0,
        word_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        word_emissions_wy=np.concatenate([s.emissions_ny for s in scores]),
        tags=config.tags,
        labels=config.labels,
        max_entity_words=settings.max_entity_words,
    )
    return units, lengths


def decode_segments(
    scores: Sequence[PostScores], config: AmlrConfig, settings: DecoderSettings
) -> list[list[Span]]:
    """Best non-overlapping entities of each post, segmental or joint."""
    if not scores:
        return []
    units, lengths = segment_units(scores, config, settings)
    entities, _ = segmental_decode(units, lengths)
    return [
        [(start, end + 1, config.labels[label]) for start, end, label in rows.tolist()]
        for rows in entities
    ]


def decode_chain(
    scores: Sequence[PostScores],
    config: AmlrConfig,
    *,
    start_y: Floats,
    transitions_yy: Floats,
    end_y: Floats,
) -> list[list[Span]]:
    """Entities of the best legal tag path of each post."""
    lengths = np.array([len(s.emissions_ny) for s in scores], np.int32)
    emissions = np.zeros((len(scores), int(lengths.max(initial=0)), len(config.tags)), np.float32)
    for row, post in enumerate(scores):
        emissions[row, : lengths[row]] = post.emissions_ny
    allowed_yy, allowed_start_y = legal_moves(config.tags)
    tags_bn, _ = viterbi_decode(
        emissions,
        lengths,
        start_y=np.where(allowed_start_y, start_y, np.float32(-np.inf)),
        transitions_yy=transitions_yy,
        end_y=end_y,
        allowed_yy=allowed_yy,
    )
    return [
        read_spans([config.tags[y] for y in row[:length]], "lenient")
        for row, length in zip(tags_bn.tolist(), lengths.tolist(), strict=True)
    ]


def legal_moves(tags: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Moves a BIO tagging of words may make, (Y, Y) from row to column, and its first tags (Y,).

    Tags that are none of O, B-X and I-X (special tokens of the release) never tag a word.

    Example:
        >>> moves, first = legal_moves(("O", "B-PER", "I-PER"))
        >>> moves.astype(int).tolist(), first.astype(int).tolist()
        ([[1, 1, 0], [1, 1, 1], [1, 1, 1]], [1, 1, 0])
    """
    is_word = [tag == "O" or tag[:2] in ("B-", "I-") for tag in tags]
    moves = np.array(
        [
            [
                ok_from
                and ok_to
                and (to[:2] != "I-" or (tag[:2] in ("B-", "I-") and tag[2:] == to[2:]))
                for to, ok_to in zip(tags, is_word, strict=True)
            ]
            for tag, ok_from in zip(tags, is_word, strict=True)
        ],
        np.bool_,
    )
    first = np.array([ok and tag[:2] != "I-" for tag, ok in zip(tags, is_word, strict=True)])
    return moves, first


def decode(
    scores: Sequence[PostScores],
    scorer: Scorer,
    settings: DecoderSettings,
) -> list[list[Span]]:
    """Entities of each post by the decoder the settings name."""
    model = scorer.model
    if settings.kind == "linear-chain":
        return decode_chain(
            scores,
            model.config,
            start_y=_numpy(model.crf_start.detach()),
            transitions_yy=_numpy(model.crf_transitions.detach()),
            end_y=_numpy(model.crf_end.detach()),
        )
    return decode_segments(scores, model.config, settings)


def settings_for(kind: str, settings: DecoderSettings) -> DecoderSettings:
    """The same settings with another decoder."""
    return dataclasses.replace(settings, kind=kind)
