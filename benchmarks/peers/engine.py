"""The engine under test: its own batching and graphs, tensors in, logits out; or posts in whole."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import BLOCKS, ModelInput, ModelShape, Picture, block_states
from amlr.benchmarks.peers.padding import hit_regions, stack_pixels
from amlr.errors import BackendUnavailableError
from amlr.runtime.batching import Batch, Scores, split_batches
from amlr.runtime.providers.base import FusesAlone, Provider


class EnginePeer:
    """Drives a provider as the engine does: windows sorted, split into batches, scored.

    Building the batches is on the clock; the other peers get theirs ready-made.
    """

    def __init__(self, provider: Provider, shape: ModelShape) -> None:
        self._provider, self._shape = provider, shape

    def encode(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions as the provider keeps them."""
        return self._provider.encode_images(pixels_bchw)

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """Pixels as one array, or features already cached."""
        if picture in BLOCKS:
            return self._block(inputs, picture)
        if picture == "cold":
            pixels = stack_pixels(inputs)
            return lambda: self._score(inputs, self._provider.encode_images(pixels))
        hit = picture == "hit"
        images = hit_regions(inputs, self.encode) if hit else [None] * len(inputs)
        return lambda: self._score(inputs, images)

    def _score(self, inputs: Sequence[ModelInput], images: Sequence[Any]) -> list[Scores]:
        scores: list[Any] = [None] * len(inputs)
        for group in split_batches([item.steps for item in inputs]):
            batch = self._batch(inputs, group)
            found = batch.split(self._provider.score(batch, [images[i] for i in group]))
            for index, score in zip(group, found, strict=True):
                scores[index] = score
        return scores

    def _block(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """The fusion graph on given hidden states; building its inputs is on the clock."""
        provider = self._provider
        if not isinstance(provider, FusesAlone):
            raise BackendUnavailableError(
                f"provider {provider.name!r} runs no fusion graph alone; leave `block` out"
            )
        states = [block_states(item, self._shape) for item in inputs]
        hidden = np.concatenate([hidden for hidden, _ in states])
        images = [regions if picture == "block" else None for _, regions in states]

        def call() -> list[Scores]:
            batch = self._batch(inputs, range(len(inputs)))
            return batch.split(provider.fuse(batch, hidden, images))

        return call

    def _batch(self, inputs: Sequence[ModelInput], group: Sequence[int]) -> Batch:
        return Batch(
            [inputs[index].window for index in group],
            [inputs[index].units for index in group],
            scales=self._shape.scales,
            pad_id=self._shape.pad_id,
        )

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """They are the output itself."""
        found: list[Scores] = raw
        return found

    def close(self) -> None:
        """Close the provider."""
        self._provider.close()
