"""The one-graph export in onnxruntime, padded to the longest post of the batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amlr.benchmarks.systems.base import (
    Floats,
    ModelInput,
    Peer,
    Picture,
    padded_feed,
)
from amlr.runtime.manifest import Manifest


class OnnxPlainPeer(Peer):
    """Default session options but for the number of threads."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        import onnxruntime

        self._folder, self._manifest = folder, manifest
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

    def encode(self, pixels_bchw: Floats) -> list[Any]:
        """Regions, from the image encoder alone."""
        return list(self._session("regions").run(None, {"pixel_values": pixels_bchw})[0])

    def prepare(self, inputs: Sequence[ModelInput], picture: Picture) -> Callable[[], Any]:
        """One padded feed."""
        session = self._session(picture)
        feed = padded_feed(inputs, self._manifest, picture, self.encode)
        return lambda: session.run(None, feed)

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()
