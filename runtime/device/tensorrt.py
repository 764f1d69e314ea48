"""TensorRT and TensorRT-RTX under a device session: every call whose answer can be "no" is checked.

Not run on a GPU by this project's own tests: they run it on doubles of the driver and the engine,
which verify our calls and nothing of TensorRT's behaviour.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from amlr.errors import PlanMismatchError
from amlr.kernels.device import DeviceError, DeviceMemoryError, Stream
from amlr.runtime.bundle import Bundle
from amlr.runtime.device.engines import LoadedGraph
from amlr.runtime.device.preflight import Host, HostTools, check_host, deserialize, open_runtime
from amlr.runtime.device.provider import DeviceProvider
from amlr.runtime.device.shapes import Limits, profile_index
from amlr.runtime.engine_record import GRAPHS, GraphEngine, Shape, rebuild_command
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.tensorrt_library import TensorRT, last_errors
from amlr.whole import replacing

# One call at a time fills a device; a second hides its copies and host work.
SESSIONS = 2


def open_family(
    family: str,
    bundle: Bundle,
    variant: Variant,
    options: ProviderOptions,
    tools: HostTools | None = None,
) -> DeviceProvider:
    """Check the machine, then load and warm up; raises as `check_host`."""
    host = check_host(bundle, family, variant.precision, tools)
    try:
        with host.device.current():
            engines = TensorRtEngines(host, bundle, options)
    except BaseException:
        host.device.close()
        raise
    return DeviceProvider(
        host.device,
        engines,
        bundle,
        free_bytes=host.free_bytes,
        compile_with=host.compile_with,
    )


open_tensorrt, open_tensorrt_rtx = (
    partial(open_family, family) for family in ("tensorrt", "tensorrt-rtx")
)


class TensorRtEngines:
    """The engines of one record; sessions share them, each with contexts of its own."""

    stages: tuple[str, ...] = ("text", "fusion")
    most_sessions = SESSIONS

    def __init__(self, host: Host, bundle: Bundle, options: ProviderOptions) -> None:
        """Deserialize the plans; the device's context must be current.

        Raises:
            PlanMismatchError: A plan is refused by the library.
            BackendUnavailableError: The library does not start.
        """
        record = host.record
        self.name, self.precision = record.library, record.precision
        self.limits = Limits.of_profiles(record)
        self.larger = (
            "build with a larger profile: "
            f"{rebuild_command(str(bundle.path), record.library)} --profile FILE"
        )
        self._cache_file = _cache_file(options, host) if host.library.is_rtx else None
        self._cache: Any = None
        runtime = open_runtime(host.library)
        self._graphs = {n: LoadedEngine(host, runtime, bundle.path, n) for n in GRAPHS}
        self._load_cache()
        self.weight_bytes = sum(engine.bytes for engine in record.graphs.values())
        self.working_bytes = SESSIONS * max(g.scratch_bytes for g in self._graphs.values())

    def load(self, stream: Stream) -> Mapping[str, LoadedGraph]:
        """The same engines for every stream."""
        return self._graphs

    def close(self) -> None:
        """Write the runtime cache and drop the engines."""
        if self._cache is not None and self._cache_file is not None:
            with replacing(self._cache_file) as aside:
                aside.write_bytes(bytes(self._cache.serialize()))
        self._cache = None
        self._graphs = {}

    def _load_cache(self) -> None:
        """TensorRT-RTX compiles kernels on the device; the cache spares the next start that."""
        if self._cache_file is None:
            return
        self._cache = self._graphs["text"].runtime_cache()
        if self._cache_file.is_file():
            # A cache of another driver or device is refused by the library, and rewritten.
            self._cache.deserialize(self._cache_file.read_bytes())
        for graph in self._graphs.values():
            graph.cache = self._cache


class LoadedEngine:
    """One deserialized engine and how contexts of it are made.

    Attributes:
        name: Graph name.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        scratch_bytes: Device memory a context needs while it runs.
        captures: Whether the session may capture it.
        cache: TensorRT-RTX: keeps kernels compiled for this device.
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
        self.cache: Any = None
        # TensorRT-RTX captures and replays CUDA graphs itself.
        self.captures = not host.library.is_rtx
        tensors = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        missing = set(self._record.shapes[0]) - set(tensors)
        if missing:
            raise PlanMismatchError(
                f"the {name} plan has no tensors {sorted(missing)}; the manifest describes another "
                "plan: build the engines again"
            )
        self.inputs = tuple(name for name in tensors if name in self._record.shapes[0])
        self.outputs = tuple(name for name in tensors if name not in self.inputs)

    def bound(self) -> "Context":
        """A new execution context that uses the caller's scratch memory."""
        api = self._library.api
        managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            # The image engine meets a new number of pictures on most calls.
            if self.name != "image":
                config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self.cache is not None:
                config.set_runtime_cache(self.cache)
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
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
        stream: Stream,
    ) -> None:
        """Set shapes, addresses of all tensors, and scratch memory; see `BoundGraph.bind`.

        Raises:
            PlanMismatchError: No profile takes the shapes.
            DeviceError: The library refused an address, or lacks a shape.
        """
        profile = profile_index(self._record.shapes, **dict(inputs))
        if profile < 0:
            raise PlanMismatchError(
                f"no profile of the {self.name} engine takes {dict(inputs)}; build the engines "
                "again with a larger profile"
            )
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream.handle):
                self._fail(f"profile {profile} was refused")
            self._profile = profile
        for name, shape in inputs.items():
            if not self._context.set_input_shape(name, shape):
                raise PlanMismatchError(
                    f"the {self.name} engine refuses shape {shape} for {name!r}: "
                    f"{_reason(self._library)}; build the engines again"
                )
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                self._fail(f"address {address:#x} of {name!r} was refused")
        try:
            lacking = self._context.infer_shapes()
        # The bindings raise where the library meets an error instead of naming what is missing.
        except RuntimeError as error:
            raise DeviceError(f"{self.name} engine: shapes cannot be inferred: {error}") from error
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


def _cache_file(options: ProviderOptions, host: Host) -> Path | None:
    if options.cache_dir is None:
        return None
    return options.cache_dir / f"{host.library.name}-sm{host.device.sm}.runtime-cache"
