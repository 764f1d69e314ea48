"""The segmental and joint decoders and their certificates on device pointers.

Shape letters: B posts, U units, C classes, Y tags, W words of all posts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from amlr.kernels.device import Stream
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import KernelLibrary, launch_warps, pointers


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
        logits: (rows, 1+C) float32 or float16, "none" first.
        emission_rows: (W,) int32, row in `emissions` of each word's first step.
        emissions: (rows, Y) of the same dtype.
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
    """Segmental and joint decoder for one tag count and dtype."""

    def __init__(self, library: KernelLibrary, *, tags: int, half: bool = False) -> None:
        self._library = library
        spec = KernelSpec(source="segmental_viterbi", tags=tags, half=half)
        self._decode = library.function(spec, "segmental_viterbi")
        self._certify = library.function(spec, "segmental_certify")
        self._box = library.function(spec, "box_scores")
        self._joint = library.function(spec, "joint_scores")
        self._joint_box = library.function(spec, "joint_box_scores")
        sure = KernelSpec(source="segmental_confidence", tags=tags, half=half)
        self._confidence = library.function(sure, "segmental_confidence")

    def joint_scores(
        self, stream: Stream, table: UnitTable, inputs: JointInputs, *, scores: int
    ) -> None:
        """Enqueue `joint_scores`; `scores` receives g, (U, C) float32."""
        self._launch_posts(
            self._joint,
            stream,
            table,
            *self._joint_arguments(table, inputs),
            np.int32(table.classes),
            np.float32(inputs.bias),
            np.float32(inputs.weight),
            *pointers(scores),
        )

    def decode(self, stream: Stream, table: UnitTable, winner: Winner, *, scores: int) -> None:
        """Enqueue `segmental_viterbi` on `scores`, (U, C) float32."""
        launch_warps(
            self._library,
            self._decode,
            stream,
            table.posts,
            _workspace_bytes(table.max_words, 4),
            *pointers(table.post_offsets, table.start, table.end, scores, table.lengths),
            *pointers(table.word_offsets),
            *(np.int32(value) for value in (table.posts, table.classes, table.max_words)),
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
        launch_warps(
            self._library,
            self._confidence,
            stream,
            table.posts,
            # Two sums of float64 for each word and one; a tile of 32 units.
            16 * (table.max_words + 1) + 512,
            *pointers(table.post_offsets, table.start, table.end, scores, table.lengths),
            *pointers(winner.counts, winner.chosen, winner.scores),
            *(np.int32(value) for value in (table.posts, table.classes, table.max_words)),
            np.float64(1 / temperature),
            *pointers(confidence),
        )

    def box_scores(
        self,
        stream: Stream,
        table: UnitTable,
        winner: Winner,
        *,
        scores: int,
        worst: int,
        radius: float = 0.0,
        radii: int = 0,
    ) -> None:
        """Enqueue `box_scores`: the worst case for the winner within independent radii of g.

        Args:
            stream: Where to enqueue.
            table: Units.
            winner: What `decode` wrote.
            scores: (U, C) float32.
            worst: Out: (U, C) float64.
            radius: One radius for all.
            radii: (U, C) float64, or 0 to use `radius`.
        """
        cells = table.units * table.classes
        if not cells:
            return
        self._library.device.launch(
            self._box,
            grid=-(-cells // 256),
            block=256,
            shared_bytes=0,
            stream=stream,
            arguments=[
                *pointers(scores, winner.choice, radii),
                np.float64(radius),
                np.int32(table.units),
                np.int32(table.classes),
                *pointers(worst),
            ],
        )

    def joint_box_scores(
        self,
        stream: Stream,
        table: UnitTable,
        inputs: JointInputs,
        winner: Winner,
        *,
        worst: int,
        unit_radius: float,
        tag_radius: float,
    ) -> None:
        """Enqueue `joint_box_scores`: the worst case within radii of unit logits and emissions.

        Args:
            stream: Where to enqueue.
            table: Units.
            inputs: The engine's raw outputs.
            winner: What `decode` wrote, with `owner`.
            worst: Out: (U, C) float64.
            unit_radius: Largest error of a unit logit.
            tag_radius: Largest error of an emission.
        """
        self._launch_posts(
            self._joint_box,
            stream,
            table,
            *self._joint_arguments(table, inputs),
            *pointers(winner.choice, winner.owner),
            np.int32(table.classes),
            # As the float32 scores see them.
            np.float64(np.float32(inputs.bias)),
            np.float64(np.float32(inputs.weight)),
            np.float64(unit_radius),
            np.float64(tag_radius),
            *pointers(worst),
        )

    def certify(
        self, stream: Stream, table: UnitTable, winner: Winner, *, worst: int, certified: int
    ) -> None:
        """Enqueue `segmental_certify`: decode the worst case; `certified` is (B,) int32, 1 or 0."""
        launch_warps(
            self._library,
            self._certify,
            stream,
            table.posts,
            _workspace_bytes(table.max_words, 8),
            *pointers(table.post_offsets, table.start, table.end, worst, table.lengths),
            *pointers(winner.counts, winner.choice, winner.scores),
            *(np.int32(value) for value in (table.posts, table.classes, table.max_words)),
            *pointers(certified),
        )

    def _joint_arguments(self, table: UnitTable, inputs: JointInputs) -> list[Any]:
        return [
            *pointers(table.post_offsets, table.start, table.end),
            *pointers(inputs.logit_rows, inputs.logits, table.word_offsets),
            *pointers(inputs.emission_rows, inputs.emissions, inputs.columns),
        ]

    def _launch_posts(
        self, function: Any, stream: Stream, table: UnitTable, *arguments: Any
    ) -> None:
        if table.posts:
            self._library.device.launch(
                function,
                grid=table.posts,
                block=128,
                shared_bytes=0,
                stream=stream,
                arguments=arguments,
            )


def _workspace_bytes(max_words: int, real_bytes: int) -> int:
    """Shared memory of one warp of the segmental kernels, as their `workspace` lays it out."""
    return -(-((max_words + 33) * real_bytes + (2 * (max_words + 1) + 66) * 4) // 8) * 8
