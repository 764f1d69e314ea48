"""Posts as numbers: examples, length-grouped batches, pictures.

Shape letters: B posts of a batch, T subword steps, N words, S scored units of a post, K largest
scale, P image regions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amlr.cli_support import progress
from amlr.errors import InputError
from amlr.runtime.batching import pool_images
from amlr.runtime.image import ImageSpec, load_pixels
from amlr.runtime.text import EncodedText, TextWindow
from amlr.runtime.units import (
    UnitTable,
    aligned_units,
    all_units,
    scale_major_index,
    unit_count,
)
from amlr.training.backbones import ImageBackbone
from amlr.training.checkpoint import Checkpoint
from amlr.training.conll import ImageFolder, LabelledPost, labels_of, match_labels
from amlr.training.score import Span, gold_spans, write_tags

Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Scope = Literal["all", "aligned"]

# Batches are cut from runs of this many batches sorted by length: little padding, much disorder.
_SORTED_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One window of one post with its gold labels.

    Attributes:
        post: Index of the post in the data set.
        encoded: The whole post, tokenized.
        window: The part of it that is read at once.
        tags_n: Gold tag ids, a stray `I-` read as `B-`.
        units: The scored units; those that cut words have -1 for words.
        target_s: Gold class of each scored unit, 0 for none.
    """

    post: int
    encoded: EncodedText
    window: TextWindow
    tags_n: Ints
    units: UnitTable
    target_s: Ints

    def __len__(self) -> int:
        return len(self.window.input_ids_t)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Posts, their examples and pictures.

    Attributes:
        posts: As read.
        examples: Windows with gold labels; nearly every post has one.
        pictures: None trains and scores without pictures.
        rename: Corpus type -> model type.
        pad_id: Padding token.
    """

    posts: Sequence[LabelledPost]
    examples: Sequence[Example]
    pictures: "Pictures | None"
    rename: Mapping[str, str]
    pad_id: int

    @property
    def gold(self) -> list[list[Span]]:
        """Entities by strict reading, in the model's names."""
        return gold_spans([post.tags for post in self.posts], "strict", self.rename)

    def picture(self, example: Example) -> Tensor | None:
        """Pixels or features of an example's picture."""
        if self.pictures is None:
            return None
        return self.pictures.get(self.posts[example.post].image_id)


def make_corpus(
    posts: Sequence[LabelledPost], checkpoint: Checkpoint, pictures: "Pictures | None", scope: Scope
) -> Corpus:
    """Tokenize posts for a model and lay out their units.

    Args:
        posts: A corpus.
        checkpoint: The model's configuration and tokenizer.
        pictures: Those of the posts, or None.
        scope: Score `all` units between the special tokens, or only word-`aligned` ones.

    Raises:
        InputError: A corpus type is none of the model's.
    """
    config = checkpoint.config
    rename = match_labels(labels_of(posts), config.labels)
    unknown = set(rename.values()) - set(config.labels)
    if unknown:
        raise InputError(
            f"the data has types {sorted(unknown)} the model does not know; it has "
            f"{list(config.labels)}"
        )
    class_ids = {label: number for number, label in enumerate(config.labels, start=1)}
    tag_ids = {tag: number for number, tag in enumerate(config.tags)}
    encoder = checkpoint.build_text_encoder()
    encoded = encoder.encode([(post.text, post.word_spans_n2) for post in posts])
    examples = []
    for number, (post, text) in enumerate(zip(posts, encoded, strict=True)):
        gold = [(start, end, rename[label]) for start, end, label in post.entities]
        tags_n = np.array([tag_ids[tag] for tag in write_tags(gold, len(post.words))], np.int64)
        for window in text.windows:
            words = slice(window.word_start, window.word_start + len(window.first_n))
            units = _scored_units(window, config.scales, scope)
            class_of = {
                (start - words.start, end - 1 - words.start): class_ids[label]
                for start, end, label in gold
            }
            unit_words = zip(units.start_word_u.tolist(), units.end_word_u.tolist(), strict=True)
            target_s = np.array([class_of.get(pair, 0) for pair in unit_words], np.int64)
            examples.append(
                Example(
                    post=number,
                    encoded=text,
                    window=window,
                    tags_n=tags_n[words],
                    units=units,
                    target_s=target_s,
                )
            )
    return Corpus(
        posts=posts,
        examples=examples,
        pictures=pictures,
        rename=rename,
        pad_id=checkpoint.token_ids.pad_id,
    )


def _scored_units(window: TextWindow, scales: int, scope: Scope) -> UnitTable:
    aligned = aligned_units(window.first_n, window.last_n, scales)
    if scope == "aligned":
        return aligned
    # Units over the special tokens are never entities; leave them out, as decoding does.
    inner = len(window.input_ids_t) - 2
    units = all_units(inner, scales)
    rows = scale_major_index(aligned.start_step_u - 1, aligned.scale_u, inner)
    start_word_u, end_word_u = units.start_word_u.copy(), units.end_word_u.copy()
    start_word_u[rows], end_word_u[rows] = aligned.start_word_u, aligned.end_word_u
    return UnitTable(
        start_word_u=start_word_u,
        end_word_u=end_word_u,
        start_step_u=units.start_step_u + 1,
        scale_u=units.scale_u,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch on one device.

    Attributes:
        input_ids_bt, attention_mask_bt, shape_ids_bt: Inputs, int64, padded on the right.
        unit_row_bs: Row of each scored unit among the batch's B * U dense units; 0 for padding.
        unit_mask_bs: True where a unit exists.
        target_bs: As in `Example`.
        cell_bs: `end_word * K + word_length - 1` of each unit; -1 for padding and units that cut
            words.
        first_bn: Step of each word's first subword, 0 for padding.
        word_mask_bn: True where a word exists.
        tags_bn: Gold tag ids, 0 for padding.
        image_index_b: Row of each post's picture in `images`, -1 for none.
        images: Pixels (I, 3, H, W) or frozen features (I, P, inner) of the distinct pictures, or
            None when there are none.
    """

    input_ids_bt: Tensor
    attention_mask_bt: Tensor
    shape_ids_bt: Tensor
    unit_row_bs: Tensor
    unit_mask_bs: Tensor
    target_bs: Tensor
    cell_bs: Tensor
    first_bn: Tensor
    word_mask_bn: Tensor
    tags_bn: Tensor
    image_index_b: Tensor
    images: Tensor | None

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if v is not None})


def collate(
    examples: Sequence[Example], scales: int, pad_id: int, pictures: Sequence[Tensor | None]
) -> Batch:
    """Pad examples into one batch.

    Args:
        examples: At least one.
        scales: K.
        pad_id: Padding token.
        pictures: Pixels or features of each example's picture, or None. The same object given
            twice is used once.
    """
    steps = max(map(len, examples))
    dense = unit_count(steps, scales)
    rows = [b * dense + e.units.index_in(steps) for b, e in enumerate(examples)]
    images, slot_b = pool_images(pictures)
    lengths = [len(e) for e in examples]
    return Batch(
        input_ids_bt=_padded([e.window.input_ids_t for e in examples], pad_id),
        attention_mask_bt=_mask(lengths).to(torch.int64),
        shape_ids_bt=_padded([e.window.shape_ids_t for e in examples], 0),
        unit_row_bs=_padded(rows, 0),
        unit_mask_bs=_mask([len(row) for row in rows]),
        target_bs=_padded([e.target_s for e in examples], 0),
        cell_bs=_padded([_cells(e.units, scales) for e in examples], -1),
        first_bn=_padded([e.window.first_n for e in examples], 0),
        word_mask_bn=_mask([len(e.window.first_n) for e in examples]),
        tags_bn=_padded([e.tags_n for e in examples], 0),
        image_index_b=torch.from_numpy(slot_b),
        images=torch.stack(images) if images else None,
    )


def _cells(units: UnitTable, scales: int) -> Ints32:
    cell_u = units.end_word_u * scales + units.end_word_u - units.start_word_u
    return np.where(units.start_word_u < 0, np.int32(-1), cell_u)


def _padded(rows: Sequence[Ints | Ints32], value: int) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


def _mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def length_batches(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Group examples of similar length.

    Args:
        lengths: Steps of each example.
        batch_size: Most examples in a batch.
        rng: Shuffles examples and batches; None sorts everything by length.

    Returns:
        Indices of each batch's examples; every example is in exactly one.
    """
    if rng is None:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
    else:
        shuffled = rng.permutation(len(lengths)).tolist()
        run = batch_size * _SORTED_BATCHES
        order = [
            i
            for begin in range(0, len(shuffled), run)
            for i in sorted(shuffled[begin : begin + run], key=lengths.__getitem__)
        ]
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    if rng is not None:
        rng.shuffle(batches)
    return batches


class Pictures:
    """Pictures of a corpus as tensors, loaded when needed; broken ones are counted and left out."""

    def __init__(self, folder: ImageFolder, spec: ImageSpec, posts: Sequence[LabelledPost]) -> None:
        """Look every post's picture up once, so that counts are per post.

        Args:
            folder: Where the files are.
            spec: Preprocessing.
            posts: The corpus.
        """
        self.folder = folder
        self._spec = spec
        # Features of the frozen encoder; where known, pixels are not read again.
        self._features: dict[str, Tensor] = {}
        self._paths: dict[str, Path] = {}
        for post in posts:
            path = folder.find(post.image_id)
            if path is not None and post.image_id is not None:
                self._paths[post.image_id] = path

    def get(self, image_id: str | None) -> Tensor | None:
        """Features where known, else pixels (3, H, W) float32; None without a usable picture."""
        if image_id in self._features:
            return self._features[image_id]
        if image_id not in self._paths:
            return None
        try:
            return torch.from_numpy(load_pixels(self._paths[image_id], self._spec))
        except InputError as error:
            self.folder.mark_unreadable(image_id, str(error))
            del self._paths[image_id]
            return None

    def precompute(self, backbone: ImageBackbone, batch_size: int = 4) -> None:
        """Run the frozen image encoder once over every picture; keeps the results in memory.

        Small batches: activations of a few pictures still fit the cache, which is twice as fast.
        """
        backbone.encoder.eval()
        ids = list(self._paths)
        starts = range(0, len(ids), batch_size)
        for begin in progress(starts, "picture batches", len(starts)):
            pixels = {i: self.get(i) for i in ids[begin : begin + batch_size]}
            usable = {i: picture for i, picture in pixels.items() if picture is not None}
            if not usable:
                continue
            with torch.no_grad():
                features = backbone.features(torch.stack(list(usable.values())))
            for image_id, regions in zip(usable, features, strict=True):
                # A copy: rows of a batch would keep the whole batch alive.
                self._features[image_id] = regions.clone()
