"""Why an answer is as it is: where the model looked, and what it says without the picture.

For people, not for speed: the post is run three times, one after another.

Shape letters: P regions of the picture.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from amlr.errors import BackendUnavailableError, InputError
from amlr.kernels.arrays import Floats
from amlr.runtime.batching import Batch
from amlr.runtime.engine import Engine
from amlr.runtime.image import load_pixels
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.by_graphs import ATTENTION, ByGraphs
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.results import Entity, Post, Result
from amlr.runtime.text import EncodedText, TextWindow
from amlr.runtime.windows import window_units


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """One post, explained.

    Attributes:
        result: The answer.
        without_image: The answer to the text alone; equal to `result` where no picture was used.
        attention: For each entity its attention over the grid, shape (rows, columns), mean over
            heads; None where no unit of the model covers the entity or no picture was used. Sums
            to less than 1 where the encoder has regions outside the grid (a ViT's first token).
        seconds: Time of the parts: `picture` (decode and encode, or the cache), `tag` (text, fusion
            and decoder), `attention`.
        picture_cached: Whether the picture was encoded before.
    """

    result: Result
    without_image: Result
    attention: tuple[Floats | None, ...]
    seconds: dict[str, float]
    picture_cached: bool


class Explainer:
    """Explains posts of one engine. Safe for several threads.

    Needs `onnxruntime` and the bundle's `attention` graph; without them there are no maps, and the
    rest works.
    """

    def __init__(self, engine: Engine) -> None:
        """Open the attention graph, beside the engine's own sessions where they cannot be used."""
        self._engine = engine
        self._graphs = _graphs(engine)
        manifest = engine.manifest
        self._side, self._skipped = _grid(manifest.regions)
        if self._graphs is not None:
            # Now, not at the first picture: by then the files may have been replaced.
            spec = manifest.image
            pixels = np.zeros((1, 3, spec.size, spec.size), np.float32)
            (word,) = engine.bundle.encoder.encode([("word", None)])
            self._attention(word.windows[0], *self._graphs.encode_images(pixels))

    @property
    def has_maps(self) -> bool:
        """Whether attention can be shown."""
        return self._graphs is not None and self._side > 0

    def explain(self, post: Post) -> Explanation:
        """Explain one post.

        Raises:
            InputError: The text or the words cannot be used.
        """
        engine = self._engine
        seconds = {"picture": 0.0, "attention": 0.0}
        features: Any = None
        before = engine.image_cache.misses
        begun = time.perf_counter()
        if post.image is not None:
            (features,) = engine.pipeline.encode_images([post.image])
            seconds["picture"] = time.perf_counter() - begun
        is_cached = post.image is not None and engine.image_cache.misses == before
        begun = time.perf_counter()
        result = engine.tag(post.text, post.image, post.words)
        seconds["tag"] = time.perf_counter() - begun
        without = result
        maps: tuple[Floats | None, ...] = (None,) * len(result.entities)
        if result.image_used:
            without = engine.tag(post.text, None, post.words)
            begun = time.perf_counter()
            maps = self._maps(post, result.entities, features)
            seconds["attention"] = time.perf_counter() - begun
        return Explanation(
            result=result,
            without_image=without,
            attention=maps,
            seconds=seconds,
            picture_cached=is_cached,
        )

    def _maps(
        self, post: Post, entities: tuple[Entity, ...], features: Any
    ) -> tuple[Floats | None, ...]:
        if self._graphs is None or not self.has_maps or not entities:
            return (None,) * len(entities)
        if self._graphs is not self._engine.pipeline.provider and post.image is not None:
            # Features of another provider may be on its device or in its precision.
            manifest = self._engine.manifest
            try:
                pixels = load_pixels(post.image, manifest.image, manifest.limits)
            except InputError:
                return (None,) * len(entities)
            (features,) = self._graphs.encode_images(pixels[None])
        (encoded,) = self._engine.bundle.encoder.encode([(post.text, post.words)])
        return tuple(self._map(encoded, entity, features) for entity in entities)

    def _map(self, encoded: EncodedText, entity: Entity, features: Any) -> Floats | None:
        assert self._graphs is not None
        manifest = self._engine.manifest
        starts, ends = encoded.word_spans_n2.T
        first, last = (
            int(np.searchsorted(starts, entity.start)),
            int(np.searchsorted(ends, entity.end)),
        )
        for window in encoded.windows:
            units = window_units(window, manifest.scales, every=False)
            own = (units.start_word_u == first - window.word_start) & (
                units.end_word_u == last - window.word_start
            )
            if own.any():
                row = int(np.flatnonzero(own)[0])
                weights_p = self._attention(window, features)[row]
                grid = weights_p[self._skipped :].reshape(self._side, self._side)
                return np.ascontiguousarray(grid, np.float32)
        return None

    def _attention(self, window: TextWindow, features: Any) -> Floats:
        """Attention of every unit of a window, shape (U, P)."""
        assert self._graphs is not None
        manifest = self._engine.manifest
        units = window_units(window, manifest.scales, every=False)
        batch = Batch([window], [units], scales=manifest.scales, pad_id=manifest.token_ids.pad_id)
        weights_up: Floats
        (weights_up,) = self._graphs.attention(batch, [features])
        return weights_up


def _grid(regions: int) -> tuple[int, int]:
    """Side of the square of regions, and how many come before it; side 0 for neither form."""
    for skipped in (0, 1):
        side = math.isqrt(max(0, regions - skipped))
        if side > 1 and side * side == regions - skipped:
            return side, skipped
    return 0, 0


def _graphs(engine: Engine) -> Any:
    """The engine's own provider where it shows attention, else float32 on the CPU, or None."""
    own = engine.pipeline.provider
    if isinstance(own, ByGraphs) and own.has_attention:
        return own
    variant = engine.manifest.variants["fp32"]
    if ATTENTION not in variant.graphs:
        return None
    try:
        engine.bundle.verify(variant)
        return open_provider("onnxruntime-cpu", engine.bundle, variant, ProviderOptions(threads=1))
    except BackendUnavailableError:
        return None
