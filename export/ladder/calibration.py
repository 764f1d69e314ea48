"""What graphs see when posts go through the runtime: the inputs that calibration needs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.results import Post

Feed = dict[str, npt.NDArray[Any]]


class RecordingProvider(OnnxRuntimeProvider):
    """Float32 onnxruntime that keeps what each graph was given.

    Attributes:
        feeds: By graph name, one dict a run.
    """

    def __init__(self, bundle: Bundle, variant: Variant, *, packed: bool = True) -> None:
        """Record a bundle's float32 variant."""
        super().__init__(bundle, variant, ProviderOptions(), packed=packed)
        self.feeds: dict[str, list[Feed]] = {}

    def _run(
        self, graph: str, feed: Feed, options: Any | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        outputs = super()._run(graph, feed, options)
        self.feeds.setdefault(graph, []).append(feed)
        return outputs


def record_feeds(bundle: Bundle, posts: Iterable[Post]) -> Mapping[str, Sequence[Feed]]:
    """Inputs of the graphs that CPUs run, for the posts given.

    Args:
        bundle: Any bundle with a float32 variant.
        posts: Calibration posts; their pictures are what the image graph is calibrated on.
    """
    variant = bundle.manifest.variants["fp32"]
    provider = RecordingProvider(bundle, variant)
    with Engine(bundle, provider, variant=variant) as engine:
        engine.tag_batch(posts)
    feeds = dict(provider.feeds)
    if "fusion_closed" in variant.graphs:
        # The same units, pictures or not: the graph without attention needs no posts of its own.
        feeds["fusion_closed"] = feeds.get("fusion_closed", []) + [
            {
                name: array
                for name, array in feed.items()
                if name == "hidden_nd" or name.startswith("rows_")
            }
            for feed in feeds.get("fusion_packed", [])
        ]
    return feeds
