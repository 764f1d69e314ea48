"""onnxruntime on CUDA under a device session: the library computes, the session owns the rest.

The library runs on the session's stream, reads inputs and writes outputs at the session's
addresses, and never waits, so that a run can be captured together with the copies and the decoder
around it.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from amlr.errors import BackendUnavailableError, PlanMismatchError
from amlr.kernels.device import DeviceError, Stream
from amlr.runtime.bundle import Bundle
from amlr.runtime.device.engines import LoadedGraph
from amlr.runtime.device.preflight import HostTools
from amlr.runtime.device.provider import DeviceProvider
from amlr.runtime.device.shapes import Limits
from amlr.runtime.engine_record import Shape
from amlr.runtime.manifest import Manifest, Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime_library import import_with_cuda
from amlr.runtime.units import unit_count

LOG = logging.getLogger("amlr.runtime")
POSTS, PICTURES, POOL = 64, 32, 512
USUAL = (32, 40)
# Activations of the largest batch, cuBLAS and cuDNN workspaces.
WORKING_BYTES = 2 << 30
_ERRORS_ONLY = 3
_DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


def open_cuda(
    bundle: Bundle, variant: Variant, options: ProviderOptions, tools: HostTools | None = None
) -> DeviceProvider:
    """Serve on an NVIDIA GPU.

    Raises:
        BackendUnavailableError: No driver or device, or onnxruntime-gpu is not installed.
        PlanMismatchError: The library cannot load a graph.
    """
    tools = tools or HostTools()
    tools.probe()
    library = tools.module or import_with_cuda()
    device = tools.open_device()
    try:
        with device.current():
            free = tools.free_bytes(device)
        engines = OnnxRuntimeEngines(library, bundle, variant)
    except BaseException:
        device.close()
        raise
    return DeviceProvider(device, engines, bundle, free_bytes=free, compile_with=tools.compile_with)


class OnnxRuntimeEngines:
    """The padded graphs of one variant."""

    name = "onnxruntime-cuda"
    # A session of the library belongs to one stream and holds its own copy of the weights.
    most_sessions = 1
    working_bytes = WORKING_BYTES
    larger = "use another provider for it"

    def __init__(self, library: Any, bundle: Bundle, variant: Variant) -> None:
        """Look at the variant; nothing is loaded yet."""
        self.precision = variant.precision
        self.stages: tuple[str, ...] = (
            ("text_fusion",) if "text_fusion" in variant.graphs else ("text", "fusion")
        )
        self.limits = _limits(bundle.manifest)
        self._library, self._bundle, self._variant = library, bundle, variant
        names = {variant.graphs[graph] for graph in (*self.stages, "image")}
        self.weight_bytes = sum(bundle.manifest.files[n].bytes for n in bundle.files_of(names))

    def load(self, stream: Stream) -> Mapping[str, LoadedGraph]:
        """Sessions of the library on this stream.

        Raises:
            PlanMismatchError: The library cannot load a graph.
            BackendUnavailableError: The library has no working CUDA.
        """
        return {graph: self._open(graph, stream) for graph in (*self.stages, "image")}

    def _open(self, graph: str, stream: Stream) -> "OnnxRuntimeGraph":
        library = self._library
        options = library.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Memory of a captured run must come from what the run before it left in the arena.
        options.enable_mem_pattern = False
        path = str(self._bundle.graph_path(self._variant, graph))
        captures = True
        for captures in (True, False):
            settings = cuda_options(
                stream, captures=captures, exact=self._variant.precision == "fp32"
            )
            provider = ("CUDAExecutionProvider", settings)
            try:
                session = library.InferenceSession(path, options, providers=[provider])
                break
            # The library has no common base class for its errors.
            except Exception as error:
                if captures and "graph capture" in str(error):
                    LOG.info("%s is not captured: %s", graph, _first_line(error))
                    continue
                raise PlanMismatchError(
                    f"onnxruntime {library.__version__} cannot load graph {graph!r} for CUDA: "
                    f"{_first_line(error)}"
                ) from error
        # onnxruntime falls back to the CPU with no more than a log line.
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailableError(
                f"onnxruntime gave {session.get_providers()} instead of CUDA; it needs the CUDA "
                "and cuDNN libraries it was built for; fix: pip install onnxruntime-gpu[cuda,cudnn]"
            )
        return OnnxRuntimeGraph(library, graph, session, captures=captures)

    def close(self) -> None:
        """Sessions of the library went with those of the provider."""


def cuda_options(stream: Stream, *, captures: bool, exact: bool) -> dict[str, str]:
    """Options of the CUDA provider: the session's stream, and float32 that is float32.

    Args:
        stream: Where the library computes.
        captures: Let the library refuse graphs that copy from the host within a run, as it does
            before it captures. Each run then tells it not to: the session captures more than one
            graph at a time, with the copies and the decoder around them.
        exact: Keep float32 products in float32. Without TF32 the library also drops convolutions
            in float16 on tensor cores, so that float16 graphs do without this.
    """
    return {
        "device_id": "0",
        "user_compute_stream": str(stream.handle),
        "do_copy_in_default_stream": "1",
        # TF32 has ten bits of mantissa; it is on unless told otherwise.
        "use_tf32": str(int(not exact)),
        # The exhaustive search runs again for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Otherwise fused norms of float16 graphs take mean and square in float16.
        "enable_skip_layer_norm_strict_mode": "1",
        # Flash and memory-efficient attention; by default flash is for 513 steps and more.
        "sdpa_kernel": "3",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(captures)),
    }


class OnnxRuntimeGraph:
    """One session of the library.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        dtypes: Of all of them.
        captures: Whether nothing in it is copied from the host within a run.
        scratch_bytes: 0; the library has an arena.
    """

    scratch_bytes = 0

    def __init__(self, library: Any, name: str, session: Any, *, captures: bool) -> None:
        self._library, self.name, self._session = library, name, session
        self.captures = captures
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.inputs = tuple(node.name for node in inputs)
        self.outputs = tuple(node.name for node in outputs)
        self.dtypes = {node.name: _DTYPES[node.type] for node in (*inputs, *outputs)}

    def bound(self) -> "BoundSession":
        """An empty binding."""
        return BoundSession(self._library, self, self._session)


class BoundSession:
    """A session of the library with inputs and outputs at fixed addresses."""

    def __init__(self, library: Any, graph: OnnxRuntimeGraph, session: Any) -> None:
        self._graph, self._session = graph, session
        self._binding = session.io_binding()
        self._options = library.RunOptions()
        self._options.log_severity_level = _ERRORS_ONLY
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # No capture by the library itself.
        self._options.add_run_config_entry("gpu_graph_id", "-1")

    def bind(
        self,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
        stream: Stream,
    ) -> None:
        """Fix shapes and addresses; see `BoundGraph.bind`."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for bind, shapes in (
            (self._binding.bind_input, inputs),
            (self._binding.bind_output, outputs),
        ):
            for name, shape in shapes.items():
                dtype = self._graph.dtypes[name]
                try:
                    bind(name, "cuda", 0, dtype, list(shape), addresses[name])
                except Exception as error:
                    raise DeviceError(
                        f"the {self._graph.name} graph refuses {name!r} of shape {shape}: "
                        f"{_first_line(error)}"
                    ) from error

    def enqueue(self, stream: Stream) -> None:
        """Run on the stream that the session was made for."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise DeviceError(
                f"the {self._graph.name} graph could not be run: {_first_line(error)}"
            ) from error


def _limits(manifest: Manifest) -> Limits:
    """Shapes worth having memory for; the graphs themselves take any."""
    tokens, scales = manifest.text.max_tokens, manifest.scales
    return Limits(
        posts=POSTS,
        least_tokens=scales,
        tokens=tokens,
        # Every unit of the longest window.
        units=unit_count(tokens, scales),
        pool=POOL,
        pictures=PICTURES,
        usual=((USUAL[0], min(USUAL[1], tokens)),),
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
