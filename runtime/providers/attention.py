"""Where units looked, for providers that run the bundle's attention graph."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import BackendUnavailableError
from amlr.runtime.batching import Batch, pool_images
from amlr.runtime.manifest import Variant

Floats = npt.NDArray[np.float32]
GRAPH = "attention"


class AttentionByGraph(ABC):
    """`ShowsAttention` by a graph of the variant."""

    precision: str
    _variant: Variant

    @abstractmethod
    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        """Outputs of a graph by name."""

    @abstractmethod
    def _hidden(self, batch: Batch) -> Floats:
        """Hidden states (N, D) of the batch's steps; rows behind them are not read."""

    @property
    def has_attention(self) -> bool:
        """Whether the variant has the attention graph."""
        return GRAPH in self._variant.graphs

    def attention(self, batch: Batch, images: Sequence[Floats]) -> list[Floats]:
        """Where each unit looked, (U, P) for each window, mean over heads."""
        if not self.has_attention:
            raise BackendUnavailableError(
                f"the {self.precision} variant has no attention graph; use fp32, or export again"
            )
        pool = pool_images(images)
        feed = batch.attention(self._hidden(batch), np.stack(pool.features), pool.slot_b)
        weights_isp = self._run(GRAPH, feed)["attention_isp"]
        counts = np.diff(batch.unit_offsets_b).tolist()
        return [weights[:count] for weights, count in zip(weights_isp, counts, strict=True)]
