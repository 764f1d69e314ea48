"""What providers that run a bundle's ONNX graphs have in common: which graph, with which inputs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from amlr.errors import BackendUnavailableError
from amlr.kernels.arrays import Floats, Ints
from amlr.runtime.batching import CPU_BATCHES, Batch, RoundUp, Scores, exact, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant

ATTENTION = "attention"


class ByGraphs(ABC):
    """Scores, fusion alone and attention from graphs by name; a library's own part is `_run`."""

    batch_sizes = CPU_BATCHES

    def __init__(
        self, bundle: Bundle, variant: Variant, *, packed: bool = True, round_up: RoundUp = exact
    ) -> None:
        """Find out which graphs there are.

        Args:
            bundle: Verified for this variant.
            variant: Graphs to run.
            packed: Whether to run the packed graphs where the variant has them.
            round_up: Sizes that the library should see, from what they must at least be.
        """
        self.precision = variant.precision
        self._bundle, self._variant, self._round_up = bundle, variant, round_up
        self._packed = packed and "fusion_packed" in variant.graphs
        # Bundles of older exports lack it.
        self._closed = self._packed and "fusion_closed" in variant.graphs
        manifest = bundle.manifest
        self._shapes = manifest.shape_embedding
        self._no_image = np.zeros((1, manifest.regions, manifest.width), dtype=np.float32)

    @abstractmethod
    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        """Outputs of a graph by name."""

    def _fuse(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        """Outputs of a fusion graph by name."""
        return self._run(graph, feed)

    def score(self, batch: Batch, images: Sequence[Floats | None]) -> Scores:
        """Raw logits in the batch's order."""
        if self._packed:
            return self.fuse(batch, self._hidden(batch), images)
        features, slot_b = pool_images(images)
        pool_npd = np.stack(features) if features else self._no_image
        text = batch.padded_text(min_steps=batch.scales, shapes=self._shapes)
        hidden = self._run("text", text)["hidden_btd"]
        feed = batch.padded_fusion(hidden, pool_npd, slot_b)
        return batch.from_padded(self._fuse("fusion", feed))

    def fuse(self, batch: Batch, hidden_nd: Floats, images: Sequence[Floats | None]) -> Scores:
        """Raw logits from hidden states (N, D) of the batch's steps; more rows are not read.

        Args:
            batch: Which units, and which steps belong together.
            hidden_nd: Hidden states of the batch's steps, one after another.
            images: Regions of each window's picture, or None.
        """
        features, slot_b = pool_images(images)
        if not features:
            return self._without_pictures(batch, hidden_nd, slot_b)
        return self._with_attention(batch, hidden_nd, np.stack(features), slot_b)

    def _without_pictures(self, batch: Batch, hidden_nd: Floats, slot_b: Ints) -> Scores:
        if not self._closed:
            return self._with_attention(batch, hidden_nd, self._no_image, slot_b)
        feed = batch.closed_fusion(hidden_nd, round_up=self._round_up)
        return batch.from_packed(self._fuse("fusion_closed", feed), round_up=self._round_up)

    def _with_attention(
        self, batch: Batch, hidden_nd: Floats, pool_npd: Floats, slot_b: Ints
    ) -> Scores:
        feed = batch.packed_fusion(hidden_nd, pool_npd, slot_b, round_up=self._round_up)
        return batch.from_packed(self._fuse("fusion_packed", feed), round_up=self._round_up)

    def _hidden(self, batch: Batch) -> Floats:
        """Hidden states (N, D) of the batch's steps; rows behind them are not read."""
        if "text_packed" in self._variant.graphs:
            text = batch.packed_text(shapes=self._shapes, round_up=self._round_up)
            return self._run("text_packed", text)["hidden_nd"]
        # This encoder cannot be packed; its rows are, from here on.
        text = batch.padded_text(shapes=self._shapes)
        hidden: Floats = self._run("text", text)["hidden_btd"][text["attention_mask"] == 1]
        return hidden

    @property
    def has_attention(self) -> bool:
        """Whether the variant has the attention graph."""
        return ATTENTION in self._variant.graphs

    def attention(self, batch: Batch, images: Sequence[Floats]) -> list[Floats]:
        """Where in its picture each unit looked, (U, P) for each window, mean over heads.

        Args:
            batch: Windows, each with at least one unit.
            images: Regions of each window's picture.

        Raises:
            BackendUnavailableError: `has_attention` is false.
        """
        if not self.has_attention:
            raise BackendUnavailableError(
                f"the {self.precision} variant has no attention graph; use fp32, or export again"
            )
        features, slot_b = pool_images(images)
        feed = batch.attention(self._hidden(batch), np.stack(features), slot_b)
        weights_isp = self._run(ATTENTION, feed)["attention_isp"]
        counts = batch.unit_counts_b.tolist()
        return [weights[:count] for weights, count in zip(weights_isp, counts, strict=True)]
