"""Engines and execution contexts: every call whose answer can be "no" is checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amlr.errors import PlanMismatchError
from amlr.kernels.device import DeviceError, DeviceMemoryError, Stream
from amlr.runtime.engine_record import GraphEngine, Shape
from amlr.runtime.providers.tensorrt_shapes import profile_index
from amlr.runtime.refusals import Host, deserialize
from amlr.runtime.tensorrt_library import TensorRT, last_errors


class LoadedEngine:
    """One deserialized engine and how contexts of it are made.

    Attributes:
        name: Graph name.
        scratch_bytes: Device memory a context needs while it runs.
    """

    def __init__(self, host: Host, runtime: Any, bundle: Path, name: str) -> None:
        """Load one plan of the host's record.

        Raises:
            PlanMismatchError: The library refuses it, or it has other tensors than the record.
        """
        self.name = name
        self._library: TensorRT = host.library
        self._record: GraphEngine = host.record.graphs[name]
        data = (bundle / self._record.file).read_bytes()
        self._engine = deserialize(host, runtime, data, name, str(bundle))
        if host.record.options.get("strip_weights"):
            variant_file = bundle / "onnx" / host.record.variant / f"{name}.onnx"
            _refit(host.library, self._engine, variant_file)
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        found = {
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        }
        missing = set(self._record.shapes[0]) - found
        if missing:
            raise PlanMismatchError(
                f"the {name} plan has no tensors {sorted(missing)}; the manifest describes another "
                "plan: build the engines again"
            )

    def context(self, *, own_graph: bool = False, cache: Any = None) -> "Context":
        """A new execution context that uses the caller's scratch memory.

        Args:
            own_graph: TensorRT-RTX: let the library capture and replay CUDA graphs itself.
            cache: TensorRT-RTX: keeps kernels compiled for this device.
        """
        api = self._library.api
        managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            if own_graph:
                config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if cache is not None:
                config.set_runtime_cache(cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(managed)
        if context is None:
            raise DeviceMemoryError(
                f"no execution context of the {self.name} engine could be made: "
                f"{_reason(self._library)}"
            )
        return Context(self._library, self._record, self.name, context)

    def runtime_cache(self) -> Any:
        """TensorRT-RTX: an empty cache for kernels compiled on this device."""
        return self._engine.create_runtime_config().create_runtime_cache()


class Context:
    """An execution context bound to shapes and addresses."""

    def __init__(self, library: TensorRT, record: GraphEngine, name: str, context: Any) -> None:
        self._library, self._record, self.name = library, record, name
        self._context = context
        self._profile = 0

    def bind(
        self,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
        stream: Stream,
    ) -> None:
        """Set shapes, addresses of all tensors, and scratch memory.

        Raises:
            PlanMismatchError: No profile takes the shapes.
            DeviceError: The library refused an address, or lacks a shape.
        """
        profile = profile_index(self._record.shapes, **dict(shapes))
        if profile < 0:
            raise PlanMismatchError(
                f"no profile of the {self.name} engine takes {dict(shapes)}; build the engines "
                "again with a larger profile"
            )
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream.handle):
                self._fail(f"profile {profile} was refused")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise PlanMismatchError(
                    f"the {self.name} engine refuses shape {shape} for {name!r}: "
                    f"{_reason(self._library)}; build the engines again"
                )
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                self._fail(f"address {address:#x} of {name!r} was refused")
        lacking = self._context.infer_shapes()
        if lacking:
            self._fail(f"shapes are missing for {list(lacking)}")
        self._context.set_device_memory(*scratch)

    def enqueue(self, stream: Stream) -> None:
        """Run on a stream.

        Raises:
            DeviceError: The launch failed; holds the library's reason.
        """
        with last_errors(self._library.logger()) as errors:
            done = self._context.execute_async_v3(stream.handle)
        if not done:
            raise DeviceError(
                f"the {self.name} engine could not be launched: "
                f"{'; '.join(errors)[:300] or 'no reason given'}"
            )

    def _fail(self, what: str) -> None:
        raise DeviceError(f"{self.name} engine: {what}: {_reason(self._library)}")


def _reason(library: TensorRT) -> str:
    errors = library.logger().errors
    return errors[-1][:300] if errors else "no reason given"


def _refit(library: TensorRT, engine: Any, onnx_file: Path) -> None:
    """Put the weights of a stripped plan back from its graph."""
    logger = library.logger()
    refitter = library.api.Refitter(engine, logger)
    parser = library.api.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx_file)) or not refitter.refit_cuda_engine():
        raise PlanMismatchError(
            f"the stripped plan could not take the weights of {onnx_file.name}: "
            f"{_reason(library)}; build the engines again"
        )
