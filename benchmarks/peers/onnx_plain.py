"""The one-graph export in onnxruntime, padded to the longest post of the batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import BLOCKS, ModelInput, ModelShape, Picture, pick
from amlr.benchmarks.peers.padding import hit_regions, padded_feed, padded_states, stack_pixels
from amlr.runtime.batching import Scores

Array = npt.NDArray[Any]


class OnnxPlainPeer:
    """Default session options but for the number of threads."""

    def __init__(self, folder: Path, shape: ModelShape, threads: int) -> None:
        import onnxruntime

        self._folder, self._shape = folder, shape
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._library: Any = onnxruntime
        self._options = options
        self._sessions: dict[str, Any] = {}

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self._library.InferenceSession(
                str(self._folder / f"{name}.onnx"),
                self._options,
                providers=["CPUExecutionProvider"],
            )
        return self._sessions[name]

    def encode(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions, from the image encoder alone."""
        return list(self._session("regions").run(None, {"pixel_values": pixels_bchw})[0])

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One padded feed."""
        session = self._session(picture)
        if picture in BLOCKS:
            hidden, regions = padded_states(inputs, self._shape)
            states = {"hidden": hidden} | ({"seen": regions} if picture == "block" else {})
            return lambda: session.run(None, states)
        feed: dict[str, Array] = padded_feed(inputs, self._shape)
        if picture == "cold":
            feed["seen"] = stack_pixels(inputs)
        elif picture == "hit":
            feed["seen"] = np.stack(hit_regions(inputs, self.encode))
        return lambda: session.run(None, feed)

    def scores(self, raw: Any, inputs: Sequence[ModelInput]) -> list[Scores]:
        """Pick the wanted units out of all of them."""
        logits, emissions = (np.asarray(array, np.float32) for array in raw)
        return pick(logits, emissions, inputs, range(len(inputs)))

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()
