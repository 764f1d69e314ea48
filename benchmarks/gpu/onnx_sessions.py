"""onnxruntime sessions for measuring: plain, on bound buffers, captured as a CUDA graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.gpu.context import Context, NotRunError
from amlr.benchmarks.gpu.workload import typed
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.by_graphs import ByGraphs

Array = npt.NDArray[Any]


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


def open_session(
    context: Context, path: Any, *, stream: Any = None, tf32: bool = False, capture: bool = False
) -> Any:
    """A session on the device.

    Args:
        context: Which device.
        path: The graph.
        stream: PyTorch stream that everything is enqueued on.
        tf32: Whether float32 products may use TF32.
        capture: Whether runs are captured as CUDA graphs.

    Raises:
        NotRunError: The session does not run on the device.
    """
    ort = import_onnxruntime(context)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if context.dry:
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    settings = {
        "device_id": 0,
        "use_tf32": int(tf32),
        # The default searches all algorithms again for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": int(capture),
    }
    if stream is not None:
        settings["user_compute_stream"] = str(stream.cuda_stream)
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

    def score(self, batch: Batch, images: Sequence[Any | None]) -> Scores:
        """Raw logits; pictures may come from several calls."""
        return super().score(batch, images)

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


class Bound:
    """A session with its inputs and outputs bound to tensors on the device."""

    def __init__(
        self,
        context: Context,
        session: Any,
        inputs: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Bind.

        Args:
            context: Which device.
            session: From `open_session`.
            inputs: Tensors by input name; NumPy arrays are copied to the device.
            shapes: Shapes of the outputs.
        """
        import torch

        ort = import_onnxruntime(context)
        self.session, self.binding = session, session.io_binding()
        self.inputs = {
            name: torch.from_numpy(value).to(context.device)
            if isinstance(value, np.ndarray)
            else value
            for name, value in inputs.items()
        }
        kinds = {output.name: output.type for output in session.get_outputs()}
        self.outputs = {
            name: torch.empty(
                shape,
                device=context.device,
                dtype=torch.float16 if kinds[name] == "tensor(float16)" else torch.float32,
            )
            for name, shape in shapes.items()
        }
        for name, tensor in self.inputs.items():
            self.binding.bind_input(name, context.device, 0, *_where(tensor))
        for name, tensor in self.outputs.items():
            self.binding.bind_output(name, context.device, 0, *_where(tensor))
        self.options = ort.RunOptions()
        if not context.dry:
            self.options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def name_graph(self, number: int) -> None:
        """Under which number the captured graph of these shapes is kept."""
        self.options.add_run_config_entry("gpu_graph_id", str(number))

    def run(self) -> None:
        """Enqueue one run."""
        self.session.run_with_iobinding(self.binding, self.options)


def _where(tensor: Any) -> tuple[Any, list[int], int]:
    kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return kind.type, list(tensor.shape), tensor.data_ptr()
