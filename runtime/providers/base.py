"""What an engine library must offer to serve a bundle.

A provider module holds one factory, named in `amlr.runtime.providers.registry`:

    open_xyz(bundle: Bundle, variant: Variant, options: ProviderOptions) -> Provider

It imports its library inside the factory, raises `BackendUnavailableError` when the library or its
device is absent, reads only verified files of the bundle, and writes only to `options.cache_dir`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import Batch, Scores

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
    """Runs the graphs of one variant. Methods may be called from several threads at once."""

    name: str
    precision: str

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[ImageFeatures]:
        """Encode pictures; one entry each, independent of the others."""
        ...

    def score(self, batch: Batch, images: Sequence[ImageFeatures | None]) -> Scores:
        """Raw logits of a batch, units and steps in the batch's own order."""
        ...

    def close(self) -> None:
        """Release the library's objects; calls under way may still finish."""
        ...
