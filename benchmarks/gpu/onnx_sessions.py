"""Plain onnxruntime sessions, beside which the engine's own provider is measured."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.by_graphs import ByGraphs


def import_onnxruntime(context: Context) -> Any:
    """onnxruntime, with PyTorch's CUDA libraries loaded before it.

    Raises:
        NotRunError: It is not the CUDA build.
    """
    import onnxruntime
    import torch  # noqa: F401  its CUDA and cuDNN are the ones that onnxruntime-gpu looks for

    if not context.dry and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRunError(f"onnxruntime {onnxruntime.__version__} here has no CUDA: run install")
    return onnxruntime


def open_session(context: Context, path: Path, *, tf32: bool = False) -> Any:
    """A session on the device; `tf32` allows TF32 in float32 products.

    Raises:
        NotRunError: The session does not run on the device.
    """
    ort = import_onnxruntime(context)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if context.dry:
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # The default searches all algorithms again for every new shape.
    settings = {"use_tf32": int(tf32), "cudnn_conv_algo_search": "HEURISTIC"}
    wanted = "CUDAExecutionProvider"
    session = ort.InferenceSession(str(path), options, providers=[(wanted, settings)])
    if session.get_providers()[0] != wanted:
        raise NotRunError(f"onnxruntime fell back to {session.get_providers()}; see log.txt")
    return session


class DirectProvider(ByGraphs):
    """A variant's padded graphs through plain sessions with settings of our choice."""

    def __init__(self, context: Context, bundle: Bundle, variant: Variant, *, tf32: bool) -> None:
        super().__init__(bundle, variant, packed="fusion" not in variant.graphs)
        self.name = "onnxruntime-direct"
        self._context, self._tf32 = context, tf32
        self._sessions: dict[str, Any] = {}

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[Any]:
        """Regions (P, D) of each picture."""
        return list(self._run("image", {"pixel_values": pixels_bchw})["regions_bpd"])

    def close(self) -> None:
        """Forget the sessions."""
        self._sessions.clear()

    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
        if graph not in self._sessions:
            path = self._bundle.graph_path(self._variant, graph)
            self._sessions[graph] = open_session(self._context, path, tf32=self._tf32)
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, typed(feed, session))
        return {n: np.asarray(o, np.float32) for n, o in zip(names, outputs, strict=True)}


_NUMPY: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def typed(feed: dict[str, Any], session: Any) -> dict[str, Any]:
    """The inputs that a session takes, in its types."""
    return {
        wanted.name: np.ascontiguousarray(feed[wanted.name], _NUMPY[wanted.type])
        for wanted in session.get_inputs()
    }
