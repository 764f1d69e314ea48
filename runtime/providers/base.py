"""What an engine library must offer to serve a bundle.

A provider module holds one factory, or a class that is one, named in
`amlr.runtime.providers.registry`:

    open_xyz(bundle: Bundle, variant: Variant, options: ProviderOptions) -> Provider

It imports its library inside the factory, raises `BackendUnavailableError` when the library or its
device is absent, reads only verified files of the bundle, and writes only to `options.cache_dir`.
What it raises at load makes `auto` pass it over; what `score` raises later ends the call for all of
its posts. CONTRIBUTING.md lists the files that a new provider touches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import Batch, BatchSizes, Scores
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.radii import Radii

ImageFeatures: TypeAlias = Any
"""Regions of one picture as its provider keeps them: numpy (P, D) on CPU, a device slot elsewhere.
They must carry `nbytes`; the engine only stores them and hands them back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """Settings of the host, not of the bundle.

    Attributes:
        threads: CPU threads for one call, or None for the physical cores this process may use.
        cache_dir: Where compiled forms may be kept, or None for nowhere.
    """

    threads: int | None = None
    cache_dir: Path | None = None


class Provider(Protocol):
    """Runs the graphs of one variant. Methods may be called from several threads at once.

    Attributes:
        name: e.g. `onnxruntime-cpu`.
        precision: e.g. `fp32`.
        batch_sizes: How much of a call it takes at once.
    """

    name: str
    precision: str
    batch_sizes: BatchSizes

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[ImageFeatures]:
        """Encode pictures; one entry each, independent of the others.

        Args:
            pixels_bchw: Pictures as `runtime/image.py` prepares them, (B, 3, H, W); at most
                `batch_sizes.pictures`.
        """
        ...

    def score(self, batch: Batch, images: Sequence[ImageFeatures | None]) -> Scores:
        """Raw logits of a batch, units and steps in the batch's own order.

        Args:
            batch: At least one window; its methods give the inputs of each graph.
            images: For each window its picture as `encode_images` gave it, or None. Several
                windows may hold one object, which `pool_images` puts into one slot.
        """
        ...

    def close(self) -> None:
        """Release the library's objects; calls under way may still finish."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """Entities of one window that is a whole post.

    Attributes:
        entities_e3: First word, last word, class; (E, 3) int32.
        scores_e: Marginal probability of each at the bundle's temperature, (E,) float32.
        best: Sum of the best segmentation; NaN where the scores held NaN or +inf.
        certified: Whether no error of the scores within given radii changes the entities; None
            where no radii were given.
    """

    entities_e3: npt.NDArray[np.int32]
    scores_e: npt.NDArray[np.float32]
    best: float
    certified: bool | None = None


@runtime_checkable
class DecodesItself(Protocol):
    """A provider that finds the entities where the logits are, so that none is copied back.

    Not every provider can; ask with `isinstance`.
    """

    def can_decode(self, settings: DecoderSettings, *, certifies: bool = False) -> bool:
        """Whether it has this decoder here, and with `certifies` its certificate too."""
        ...

    def decode(
        self,
        batch: Batch,
        images: Sequence[ImageFeatures | None],
        settings: DecoderSettings,
        radii: Sequence[Radii | None] | None = None,
    ) -> list[Decoded]:
        """Entities of each window.

        Args:
            batch: Windows that are whole posts, with their word-aligned units.
            images: As for `score`.
            settings: For which `can_decode` is true.
            radii: For each window the largest errors of its scores, or None: not certified. None
                for all certifies nothing.
        """
        ...
