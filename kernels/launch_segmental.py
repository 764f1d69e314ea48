"""The segmental and joint decoders and their certificates on device pointers.

Shape letters: B posts, U units, C classes, Y tags, W words of all posts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from amlr.kernels.device import Stream
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import (
    BLOCK_THREADS,
    SHARED_LIMIT,
    WARPS_PER_BLOCK,
    KernelLibrary,
    launch_blocks,
    pointers,
)

_LONGEST = 32  # words of a unit that a warp holds at a time
_MOST_PARTS = 16  # blocks that build the scores of one post


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTable:
    """Ragged units on the device.

    Attributes:
        post_offsets: (B+1,) int64.
        start: (U,) int32, first word within the post.
        end: (U,) int32, last word, inclusive, sorted within a post.
        lengths: (B,) int32, words of each post, 0..max_words.
        posts: B.
        units: U.
        classes: C.
        max_words: Words of the longest post.
        word_offsets: (B+1,) int64, words of each post; 0 where emissions play no part.
    """

    post_offsets: int
    start: int
    end: int
    lengths: int
    posts: int
    units: int
    classes: int
    max_words: int
    word_offsets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """What `segmental_viterbi` writes.

    Attributes:
        counts: (B,) int32, chosen units of each post.
        chosen: (U, 2) int32; the first counts[b] rows from post_offsets[b] on: unit, class.
        choice: (U,) int32, class of each chosen unit, -1 elsewhere.
        scores: (B,) float32, NaN where a post holds NaN, +inf or malformed units.
        owner: (W,) int32, unit that covers each word or -1; 0: not wanted.
    """

    counts: int
    chosen: int
    choice: int
    scores: int
    owner: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JointInputs:
    """An engine's raw outputs, from which joint scores are built.

    Attributes:
        logit_rows: (U,) int32, row of each unit in `logits`, -1: scored by emissions alone.
        logits: (rows, 1+C) float32, "none" first.
        emission_rows: (W,) int32, row in `emissions` of each word's first step.
        emissions: (rows, Y) float32.
        columns: (1+2C,) int32, columns of O, the B-tags and the I-tags.
        bias: b.
        weight: w; 0 reads no emissions.
    """

    logit_rows: int
    logits: int
    emission_rows: int
    emissions: int
    columns: int
    bias: float
    weight: float


class SegmentalKernels:
    """Segmental and joint decoder for one tag count."""

    def __init__(self, library: KernelLibrary, *, tags: int) -> None:
        self._library = library
        spec = KernelSpec(source="segmental_viterbi", tags=tags)
        self._decode = library.function(spec, "segmental_viterbi")
        self._certify = library.function(spec, "segmental_certify")
        scores = KernelSpec(source="unit_scores", tags=tags)
        self._joint = library.function(scores, "joint_scores")
        self._joint_box = library.function(scores, "joint_box_scores")
        sure = KernelSpec(source="segmental_confidence", tags=tags)
        self._confidence = library.function(sure, "segmental_confidence")

    def joint_scores(
        self, stream: Stream, table: UnitTable, inputs: JointInputs, *, scores: int
    ) -> None:
        """Enqueue `joint_scores`; `scores` receives g, (U, C) float32."""
        self._launch_scores(
            self._joint,
            stream,
            table,
            4,
            self._joint_arguments(table, inputs),
            np.float32(inputs.bias),
            np.float32(inputs.weight),
            *pointers(scores),
        )

    def decode(self, stream: Stream, table: UnitTable, winner: Winner, *, scores: int) -> None:
        """Enqueue `segmental_viterbi` on `scores`, (U, C) float32."""
        width, nbytes = _workspace(table.max_words, 4)
        launch_blocks(
            self._library,
            self._decode,
            stream,
            table.posts,
            nbytes,
            *pointers(table.post_offsets, table.start, table.end, scores, table.lengths),
            *pointers(table.word_offsets),
            *(np.int32(value) for value in (table.classes, table.max_words, width)),
            *pointers(winner.counts, winner.chosen, winner.choice, winner.owner, winner.scores),
        )

    def confidence(
        self,
        stream: Stream,
        table: UnitTable,
        winner: Winner,
        *,
        scores: int,
        confidence: int,
        temperature: float = 1.0,
    ) -> None:
        """Enqueue `segmental_confidence`: the marginal probability of each chosen unit.

        Args:
            stream: Where to enqueue.
            table: Units.
            winner: What `decode` wrote for the same scores.
            scores: (U, C) float32.
            confidence: Out: (U,) float32; the first counts[b] from post_offsets[b] on, in the order
                of `winner.chosen`. Nothing is written where `winner.scores` is NaN.
            temperature: Scores are divided by it.
        """
        # Two sums for each word and one, a tile of 32 units, a word a warp.
        fixed = 16 * (table.max_words + 1) + 512 + 4 * WARPS_PER_BLOCK
        width = _table_width(table.max_words, fixed, 8)
        launch_blocks(
            self._library,
            self._confidence,
            stream,
            table.posts,
            fixed + 8 * table.max_words * width,
            *pointers(table.post_offsets, table.start, table.end, scores, table.lengths),
            *pointers(winner.counts, winner.chosen, winner.scores),
            *(np.int32(value) for value in (table.classes, table.max_words, width)),
            np.float64(1 / temperature),
            *pointers(confidence),
        )

    def joint_box_scores(
        self,
        stream: Stream,
        table: UnitTable,
        inputs: JointInputs,
        winner: Winner,
        *,
        radii: int,
        worst: int,
    ) -> None:
        """Enqueue `joint_box_scores`: the worst case within radii of g and of emissions.

        Args:
            stream: Where to enqueue.
            table: Units.
            inputs: The engine's raw outputs.
            winner: What `decode` wrote, with `owner`.
            radii: (B, 2) float64: for each post the largest error of a g that has logits, and one
                of an emission.
            worst: Out: (U, C) float64.
        """
        self._launch_scores(
            self._joint_box,
            stream,
            table,
            8,
            [*self._joint_arguments(table, inputs), *pointers(winner.choice, winner.owner)],
            # As the float32 scores see them.
            np.float64(np.float32(inputs.bias)),
            np.float64(np.float32(inputs.weight)),
            *pointers(radii, worst),
        )

    def certify(
        self, stream: Stream, table: UnitTable, winner: Winner, *, worst: int, certified: int
    ) -> None:
        """Enqueue `segmental_certify`: decode the worst case; `certified` is (B,) int32, 1 or 0."""
        width, nbytes = _workspace(table.max_words, 8)
        launch_blocks(
            self._library,
            self._certify,
            stream,
            table.posts,
            nbytes,
            *pointers(table.post_offsets, table.start, table.end, worst, table.lengths),
            *pointers(winner.counts, winner.choice, winner.scores),
            *(np.int32(value) for value in (table.classes, table.max_words, width)),
            *pointers(certified),
        )

    def _joint_arguments(self, table: UnitTable, inputs: JointInputs) -> list[Any]:
        return [
            *pointers(table.post_offsets, table.start, table.end),
            *pointers(inputs.logit_rows, inputs.logits, table.word_offsets),
            *pointers(inputs.emission_rows, inputs.emissions, inputs.columns),
        ]

    def _launch_scores(
        self,
        function: Any,
        stream: Stream,
        table: UnitTable,
        real_bytes: int,
        arrays: list[Any],
        *rest: Any,
    ) -> None:
        if not table.posts:
            return
        # Enough blocks a post for one (unit, class) a thread in a post of average size.
        cells = -(-table.units * table.classes // table.posts)
        parts = min(max(-(-cells // BLOCK_THREADS), 1), _MOST_PARTS)
        # For each word what it adds as first or later word of each class.
        word_bytes = 2 * table.classes * real_bytes
        room = min(table.max_words, SHARED_LIMIT // word_bytes)
        launch_blocks(
            self._library,
            function,
            stream,
            table.posts * parts,
            room * word_bytes,
            *arrays,
            *(np.int32(value) for value in (table.classes, parts, room)),
            *rest,
        )


def _workspace(max_words: int, real_bytes: int) -> tuple[int, int]:
    """Width of the table of units and bytes of a block, as the decoders' `workspace` has it."""
    fixed = (max_words + 33) * real_bytes + (2 * max_words + 1 + 64 + 12) * 4
    width = _table_width(max_words, fixed, real_bytes)
    return width, fixed + max_words * width * real_bytes


def _table_width(max_words: int, fixed: int, cell_bytes: int) -> int:
    """Words of the longest unit in shared memory; posts with longer ones take a slow path."""
    room = max(SHARED_LIMIT - fixed, 0)
    return min(max_words, _LONGEST, room // max(max_words * cell_bytes, 1))
