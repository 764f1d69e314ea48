"""The linear-chain decoder and its confidence on device pointers.

Shape letters: B sequences, T steps, Y tags.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from amlr.kernels.device import Stream
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import (
    WARPS_PER_BLOCK,
    KernelLibrary,
    launch_blocks,
    pointers,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Linear chains on the device.

    Attributes:
        emissions: (rows, Y) float32, an engine's output.
        lengths: (B,) int32, steps of each sequence, 0..max_steps.
        start: (Y,) float32.
        transitions: (Y, Y) float32, from row to column; -inf forbids.
        end: (Y,) float32.
        batch: B.
        max_steps: T, width of the tags that come out.
        rows: (B, T) int32, row of each step in `emissions`; 0: row b * T + t.
    """

    emissions: int
    lengths: int
    start: int
    transitions: int
    end: int
    batch: int
    max_steps: int
    rows: int = 0

    def arguments(self) -> list[Any]:
        """The kernels' first arguments."""
        return [
            *pointers(self.emissions, self.rows, self.lengths),
            *pointers(self.start, self.transitions, self.end),
            np.int32(self.max_steps),
        ]


class LinearKernels:
    """Linear-chain decoder and its confidence for one tag count."""

    def __init__(self, library: KernelLibrary, *, tags: int) -> None:
        self._library = library
        self._tags = tags
        self._decode, self._confidence = (
            library.function(KernelSpec(source=source, tags=tags), source)
            for source in ("linear_viterbi", "linear_confidence")
        )

    def decode(self, stream: Stream, chains: Chains, *, tags: int, scores: int) -> None:
        """Enqueue `linear_viterbi`.

        Args:
            stream: Where to enqueue.
            chains: Inputs.
            tags: Out: (B, T) int32, -1 past the end and for sequences that hold NaN or +inf.
            scores: Out: (B,) float32, NaN for those sequences.
        """
        launch_blocks(
            self._library,
            self._decode,
            stream,
            chains.batch,
            _decoder_bytes(chains.max_steps, self._tags),
            *chains.arguments(),
            *pointers(tags, scores),
        )

    def confidence(
        self,
        stream: Stream,
        chains: Chains,
        *,
        tags: int,
        forward: int,
        link: int,
        backward: int,
        confidence: int,
        log_total: int,
        temperature: float = 1.0,
    ) -> None:
        """Enqueue `linear_confidence` for paths that `decode` wrote.

        Args:
            stream: Where to enqueue.
            chains: Inputs.
            tags: (B, T) int32, the paths.
            forward: Out: (B, T) float32, see `link`.
            link: Out: (B, T) float32. The probability of the path's tags of steps s..e is
                exp(forward[s] + link[s+1] + ... + link[e] + backward[e]).
            backward: Out: (B, T) float32.
            confidence: Out: (B, T) float32, probability of the path's tag; 0 past the end.
            log_total: Out: (B,) float32, log of the partition sum.
            temperature: Scores are divided by it.
        """
        # As in the source: two windows of scaled emissions and tags, the total, a word a warp.
        window = 64 if self._tags <= 16 else 32
        launch_blocks(
            self._library,
            self._confidence,
            stream,
            chains.batch,
            2 * window * (8 * self._tags + 4) + 8 + 4 * WARPS_PER_BLOCK,
            *chains.arguments(),
            np.float32(1 / temperature),
            *pointers(tags, forward, link, backward, confidence, log_total),
        )


def _decoder_bytes(max_steps: int, tags: int) -> int:
    """Shared memory of one block of `linear_viterbi`, as the source lays it out."""
    steps_per_word = 8 if tags <= 16 else 6
    window = 16 * steps_per_word
    survivors = -(-max_steps // steps_per_word) * (tags + 1)
    return 4 * (survivors + (window + 1) * tags + WARPS_PER_BLOCK + 1) + window * tags
