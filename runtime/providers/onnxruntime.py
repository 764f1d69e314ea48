"""Provider `onnxruntime-cpu`: onnxruntime on any CPU, on the packed graphs, without padding.

The same library on CUDA is `amlr.runtime.device.onnxruntime`.
"""

import threading
from typing import Any

from amlr.errors import PlanMismatchError
from amlr.kernels.arrays import Floats, Ints
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.cpu import usable_cores
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.providers.onnxruntime_library import import_onnxruntime

_ERRORS_ONLY, _FATAL_ONLY = 3, 4


class OnnxRuntimeProvider(ByGraphs):
    """Runs a variant's ONNX graphs; a session is made when its graph is first needed."""

    name = "onnxruntime-cpu"

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: ProviderOptions,
        *,
        packed: bool = True,
    ) -> None:
        """Check the library; graphs load later.

        Args:
            bundle: Verified for this variant.
            variant: Graphs to run.
            options: Threads; nothing is cached on disk.
            packed: Whether to run the packed graphs where the variant has them.

        Raises:
            BackendUnavailableError: onnxruntime is not installed.
        """
        super().__init__(bundle, variant, packed=packed)
        self._library = import_onnxruntime()
        self._threads = options.threads or usable_cores()
        # Float kernels take empty inputs; quantised ones are not known to.
        self._allow_empty = variant.precision == "fp32"
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def loaded_graphs(self) -> tuple[str, ...]:
        """Graphs that have a session."""
        return tuple(sorted(self._sessions))

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """Regions of each picture, shape (P, D)."""
        regions = self._run("image", {"pixel_values": pixels_bchw})["regions_bpd"]
        # Copies: a view would keep the whole batch alive for as long as one picture is cached.
        return [picture.copy() for picture in regions]

    def _without_pictures(self, batch: Batch, hidden_nd: Floats, slot_b: Ints) -> Scores:
        if self._allow_empty:
            # As fast as the graph without attention, and no weights twice in memory.
            scores = self._with_empty_attention(batch, hidden_nd, slot_b)
            if scores is not None:
                return scores
        return super()._without_pictures(batch, hidden_nd, slot_b)

    def _with_empty_attention(self, batch: Batch, hidden_nd: Floats, slot_b: Ints) -> Scores | None:
        """Scores, or None where this graph turns out not to take empty inputs."""
        feed = batch.packed_fusion(hidden_nd, self._no_image, slot_b, allow_empty=True)
        quiet = self._library.RunOptions()
        quiet.log_severity_level = _FATAL_ONLY
        try:
            return batch.from_packed(self._run("fusion_packed", feed, quiet))
        # Some reshapes cannot divide nothing; the library has no error class to tell that apart,
        # and what is truly wrong fails again with other inputs.
        except Exception:
            self._allow_empty = False
            return None

    def close(self) -> None:
        """Forget the sessions."""
        with self._lock:
            self._sessions.clear()

    def _run(
        self, graph: str, feed: dict[str, Any], options: Any | None = None
    ) -> dict[str, Floats]:
        session = self._sessions.get(graph) or self._open(graph)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed, options), strict=True))

    def _open(self, graph: str) -> Any:
        with self._lock:
            if graph not in self._sessions:
                self._sessions[graph] = self._session(graph)
            return self._sessions[graph]

    def _session(self, graph: str) -> Any:
        ort = self._library
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Every batch has new shapes: a memory plan per shape would never be used twice.
        options.enable_mem_pattern = False
        # A waiting thread must not burn a core that the host application needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self._bundle.graph_path(self._variant, graph)
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # The library has no common base class for its errors.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PlanMismatchError(
                f"onnxruntime {ort.__version__} cannot load graph {graph!r}: {reason}"
            ) from error
