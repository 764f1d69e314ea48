"""The engine under test, tensors in or posts in; and any peer behind its text and decoding."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from amlr.benchmarks.systems.base import (
    BLOCKS,
    Floats,
    ModelInput,
    Peer,
    Picture,
    batch_of,
    block_states,
    hit_regions,
    stack_pixels,
)
from amlr.errors import BackendUnavailableError
from amlr.runtime.batching import CPU_BATCHES, Batch, Scores, split_batches
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Manifest
from amlr.runtime.providers.base import Provider
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.results import Post, Result

CACHE_MB = 256


class EnginePeer(Peer):
    """Drives a provider as the engine does: windows sorted, split into batches, scored.

    Building the batches is on the clock; the other peers get theirs ready-made.
    """

    def __init__(self, provider: Provider, manifest: Manifest) -> None:
        self._provider, self._manifest = provider, manifest

    def encode(self, pixels_bchw: Floats) -> list[Any]:
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
            batch = batch_of([inputs[index] for index in group], self._manifest)
            parts = batch.split(self._provider.score(batch, [images[i] for i in group]))
            for index, score in zip(group, parts, strict=True):
                scores[index] = score
        return scores

    def _block(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """The fusion graph on ready hidden states; building its inputs is on the clock."""
        provider = self._provider
        if not isinstance(provider, ByGraphs):
            raise BackendUnavailableError(
                f"provider {provider.name!r} runs no fusion graph alone; leave `block` out"
            )
        states = [block_states(item, self._manifest) for item in inputs]
        hidden = np.concatenate([hidden for hidden, _ in states])
        images = [regions if picture == "block" else None for _, regions in states]

        def call() -> list[Scores]:
            batch = batch_of(inputs, self._manifest)
            return batch.split(provider.fuse(batch, hidden, images))

        return call

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """They are the output itself."""
        scores: list[Scores] = raw
        return scores


class PeerProvider:
    """A peer as a provider of the runtime."""

    precision = "any"
    batch_sizes = CPU_BATCHES

    def __init__(self, peer: Peer, name: str, *, keep: bool) -> None:
        """Wrap a peer; with `keep`, pictures are held in the form its own `encode` gives."""
        self.name = name
        self._peer, self._keep = peer, keep

    def encode_images(self, pixels_bchw: Floats) -> list[Any]:
        """Regions, or the pixels themselves where nothing is to be kept between requests."""
        return self._peer.encode(pixels_bchw) if self._keep else list(pixels_bchw)

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Posts with and without a picture go through the peer apart."""
        scores: list[Any] = [None] * len(batch)
        for has_picture in (True, False):
            rows = [row for row, image in enumerate(images) if (image is not None) == has_picture]
            if not rows:
                continue
            inputs = [self._input(batch, row, images[row]) for row in rows]
            picture: Picture = "none" if not has_picture else "hit" if self._keep else "cold"
            parts = self._peer.scores(self._peer.prepare(inputs, picture)(), inputs)
            for row, score in zip(rows, parts, strict=True):
                scores[row] = score
        return Scores(
            unit_logits_mc=np.concatenate([score.unit_logits_mc for score in scores]),
            emissions_ny=np.concatenate([score.emissions_ny for score in scores]),
        )

    def _input(self, batch: Batch, row: int, image: Any) -> ModelInput:
        return ModelInput(
            window=batch.windows[row],
            units=batch.units[row],
            pixels_chw=None if self._keep else image,
            regions=image if self._keep else None,
        )

    def close(self) -> None:
        """The peer is closed by whoever made it."""


class EndToEnd:
    """A running system: texts and picture files in, entities out, through an engine.

    The words around the model are the engine's for all systems; what differs is the model.

    Attributes:
        peer: The model, tensors to logits, which outlives its engines; None where the engine has
            one of its own.
    """

    def __init__(self, load: Callable[[int], Engine], peer: Peer | None = None) -> None:
        """Open nothing yet.

        Args:
            load: Opens an engine with a cache of so many megabytes for pictures; 0 keeps none.
            peer: The model that it gets.
        """
        self.peer = peer
        self._load = load
        self._engine: Engine | None = None
        self._cache_mb = 0

    def prepare(self, posts: Sequence[Post], picture: Picture) -> Callable[[], list[Result]]:
        """Build the timed call; on a `hit`, its first run fills the cache."""
        cache_mb = CACHE_MB if picture == "hit" else 0
        if self._engine is not None and cache_mb != self._cache_mb:
            # Before another is opened, so that memory is that of serving.
            self.close()
        if self._engine is None:
            self._engine, self._cache_mb = self._load(cache_mb), cache_mb
        engine = self._engine
        chosen = [Post(p.text, None if picture == "none" else p.image, p.words) for p in posts]
        return lambda: engine.tag_batch(chosen)

    def close(self) -> None:
        """Release the engine."""
        if self._engine is None:
            return
        if self.peer is None:
            self._engine.close()
        else:
            self._engine.pipeline.close()
        self._engine = None
