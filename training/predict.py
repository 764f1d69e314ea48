"""Raw scores of whole posts from the eager model; entities from them by the runtime's decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amlr.kernels import segmental_decode
from amlr.runtime.batching import Scores
from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.decode import Decoder
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.units import UnitTable
from amlr.runtime.windows import PostScores, merge_windows
from amlr.training.config import AmlrConfig
from amlr.training.data import Corpus, Example, collate, length_batches
from amlr.training.model import AmlrModel
from amlr.training.score import Span, to_words
from amlr.training.scorer import Scorer

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """The model's own numbers for one post.

    Attributes:
        scores: Raw scores of the word-aligned units and of every word's first step.
        argmax_units: Every unit whose best class is an entity, overlaps kept, as the release
            predicts. Units that cut words, scored only on request, have negative positions, so
            that they match no gold entity.
    """

    scores: PostScores
    argmax_units: tuple[Span, ...]

    @property
    def is_finite(self) -> bool:
        """Whether no number overflowed."""
        scores = self.scores
        return bool(
            np.isfinite(scores.unit_logits_uc).all() and np.isfinite(scores.emissions_ty).all()
        )


@torch.no_grad()
def predict(scorer: Scorer, corpus: Corpus, *, batch_size: int = 32) -> list[Prediction]:
    """Score posts.

    Args:
        scorer: The model; put into inference mode and back.
        corpus: Posts, their windows and pictures.
        batch_size: Windows in one batch.
    """
    was_training = scorer.training
    scorer.eval()
    config, device = scorer.model.config, next(scorer.parameters()).device
    windows: list[list[_ScoredWindow]] = [[] for _ in corpus.posts]
    for indices in length_batches([len(e) for e in corpus.examples], batch_size):
        chosen = [corpus.examples[i] for i in indices]
        pictures = [corpus.picture(example) for example in chosen]
        output = scorer(collate(chosen, config.scales, corpus.pad_id, pictures).to(device))
        for row, example in enumerate(chosen):
            windows[example.post].append(
                _ScoredWindow(
                    example=example,
                    logits_sc=_numpy(output.unit_logits[row, : len(example.target_s)]),
                    emissions_ny=_numpy(output.emissions[row, : len(example.tags_n)]),
                )
            )
    scorer.train(was_training)
    return [_join(of_post, config) for of_post in windows]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScoredWindow:
    """Logits of a window's scored units, and emissions of its words."""

    example: Example
    logits_sc: Floats
    emissions_ny: Floats


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def _join(windows: Sequence[_ScoredWindow], config: AmlrConfig) -> Prediction:
    """Scores of a post out of its windows, merged as the runtime merges them."""
    windows = sorted(windows, key=lambda window: window.example.window.word_start)
    rows = [_aligned_rows(window.example.units) for window in windows]
    scores = merge_windows(
        windows[0].example.encoded,
        [_take(window.example.units, rows_u) for window, rows_u in zip(windows, rows, strict=True)],
        [
            Scores(unit_logits_mc=window.logits_sc[rows_u], emissions_ny=_at_steps(window))
            for window, rows_u in zip(windows, rows, strict=True)
        ],
        scales=config.scales,
        every=False,
    )
    units, best_u = scores.units, scores.unit_logits_uc.argmax(1)
    argmax_units = [
        (int(start), int(end) + 1, config.classes[best])
        for start, end, best in zip(units.start_word_u, units.end_word_u, best_u, strict=True)
        if best
    ]
    for window in windows:
        argmax_units += _cut_words(window, config)
    return Prediction(scores=scores, argmax_units=tuple(argmax_units))


def _aligned_rows(units: UnitTable) -> npt.NDArray[np.intp]:
    """Rows of the word-aligned units, by their last word, then by their first."""
    order = np.lexsort((units.start_word_u, units.end_word_u))
    return order[units.start_word_u[order] >= 0]


def _take(units: UnitTable, rows_u: npt.NDArray[np.intp]) -> UnitTable:
    return UnitTable(
        start_word_u=units.start_word_u[rows_u],
        end_word_u=units.end_word_u[rows_u],
        start_step_u=units.start_step_u[rows_u],
        scale_u=units.scale_u[rows_u],
    )


def _at_steps(window: _ScoredWindow) -> Floats:
    """Emissions of all steps; those no word begins at are never read."""
    emissions = np.zeros((len(window.example), window.emissions_ny.shape[1]), np.float32)
    emissions[window.example.window.first_n] = window.emissions_ny
    return emissions


def _cut_words(window: _ScoredWindow, config: AmlrConfig) -> list[Span]:
    """Entities among the units that cut words, at negative positions."""
    units, best_s = window.example.units, window.logits_sc.argmax(1)
    offset = 1 + 1000 * window.example.window.word_start
    return [
        (
            -offset - int(units.start_step_u[row]),
            -int(units.scale_u[row]),
            config.classes[best_s[row]],
        )
        for row in np.flatnonzero((best_s > 0) & (units.start_word_u < 0)).tolist()
    ]


def make_decoder(model: AmlrModel, settings: DecoderSettings) -> Decoder:
    """The decoder that a bundle of this model would have, by the given settings."""
    moves_yy, first_y = legal_moves(model.config.tags)
    return Decoder(
        settings=settings,
        weights=DecoderWeights(
            start_y=np.where(first_y, _numpy(model.crf_start), np.float32(-np.inf)),
            transitions_yy=_numpy(model.crf_transitions),
            end_y=_numpy(model.crf_end),
            allowed_yy=moves_yy,
        ),
        labels=model.config.labels,
        tags=model.config.tags,
    )


def legal_moves(tags: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Moves a BIO tagging of words may make, (Y, Y) from row to column, and its first tags (Y,).

    Tags that are none of O, B-X and I-X (special tokens of the release) never tag a word.

    Example:
        >>> moves, first = legal_moves(("O", "B-PER", "I-PER"))
        >>> moves.astype(int).tolist(), first.astype(int).tolist()
        ([[1, 1, 0], [1, 1, 1], [1, 1, 1]], [1, 1, 0])
    """
    kinds = [tag if tag == "O" else tag[:2] for tag in tags]
    is_word = np.array([kind in ("O", "B-", "I-") for kind in kinds], np.bool_)
    continues = np.array([kind == "I-" for kind in kinds], np.bool_)
    names = np.array(
        [tag[2:] if kind != "O" else "" for tag, kind in zip(tags, kinds, strict=True)]
    )
    moves = is_word[:, None] & is_word & (~continues | (names[:, None] == names))
    return moves, is_word & ~continues


def decode(predictions: Sequence[Prediction], decoder: Decoder) -> list[list[Span]]:
    """Entities of each post in words."""
    posts = [prediction.scores for prediction in predictions]
    if not posts or decoder.settings.kind == "linear-chain":
        return [
            to_words(post.encoded.word_spans_n2, entities)
            for post, entities in zip(posts, decoder.entities(posts), strict=True)
        ]
    # Tuning decodes often: without the entities' scores it takes half the time.
    answers, _ = segmental_decode(*decoder.units(posts))
    return [
        [(start, end + 1, decoder.labels[label]) for start, end, label in rows.tolist()]
        for rows in answers
    ]
