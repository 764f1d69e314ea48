"""Any peer behind the engine's text, picture and decoding path: strings and files in, entities out.

The words around the model are thus the same for all, and the fast ones; what differs is the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import ModelInput, Picture
from amlr.benchmarks.peers.base import Peer
from amlr.runtime.batching import CPU_BATCHES, Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.providers.base import Provider
from amlr.runtime.results import Entity, Post

_CACHE_MB = 256


class PeerProvider:
    """A peer as a provider of the runtime."""

    precision = "any"
    batch_sizes = CPU_BATCHES

    def __init__(self, peer: Peer, name: str, *, keep: bool) -> None:
        """Wrap a peer; with `keep`, pictures are held in the form its own `encode` gives."""
        self.name = name
        self._peer, self._keep = peer, keep

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions, or the pixels themselves where nothing is to be kept between requests."""
        return self._peer.encode(pixels_bchw) if self._keep else list(pixels_bchw)

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Posts with and without a picture go through the peer apart."""
        scores: list[Any] = [None] * len(batch)
        for seen in (True, False):
            rows = [row for row, image in enumerate(images) if (image is not None) == seen]
            if not rows:
                continue
            inputs = [self._input(batch, row, images[row]) for row in rows]
            picture: Picture = "none" if not seen else "hit" if self._keep else "cold"
            found = self._peer.scores(self._peer.prepare(inputs, picture)(), inputs)
            for row, score in zip(rows, found, strict=True):
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
    """Engines around one provider: with a cache of pictures for `hit`, without one otherwise."""

    def __init__(self, bundle: Bundle, provider: Callable[[bool], Provider], threads: int) -> None:
        """Join a bundle and a provider.

        Args:
            bundle: Text, picture and decoder settings.
            provider: Gives the provider; its argument says whether pictures are kept.
            threads: Pictures decoded at a time.
        """
        self._bundle, self._provider, self._threads = bundle, provider, threads
        self._engines: dict[bool, Engine] = {}

    def prepare(self, posts: Sequence[Post], picture: Picture) -> Callable[[], Any]:
        """Build the timed call; on a `hit`, its first run fills the cache."""
        engine = self._engine(keep=picture == "hit")
        given = [Post(post.text, None, post.words) for post in posts]
        chosen = list(posts) if picture != "none" else given
        return lambda: engine.tag_batch(chosen)

    def entities(self, raw: Any) -> list[list[Entity]]:
        """Entities of each post."""
        return [list(result.entities) for result in raw]

    def _engine(self, *, keep: bool) -> Engine:
        if keep not in self._engines:
            self._engines[keep] = Engine(
                self._bundle,
                self._provider(keep),
                threads=self._threads,
                image_cache_mb=_CACHE_MB if keep else 0,
            )
        return self._engines[keep]
