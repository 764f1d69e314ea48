"""A double of the TensorRT Python API: engines run the same ONNX graph through onnxruntime.

Inputs are read and outputs written at the bound device addresses of a `DoubleDevice`. The names are
the library's (a test compares them with its real bindings), the behaviour is ours: it proves that
shapes, addresses, profiles, streams and graphs are handled, and nothing about TensorRT itself.
"""

import ctypes
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from doubles.device import DoubleDevice

_DTYPES: dict[str, npt.DTypeLike] = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
Shape = tuple[int, ...]


@dataclass
class Faults:
    """What goes wrong, by name of the call; `graph` limits it to one engine.

    Names: runtime, deserialize, validity, context, profile, shape, address, infer, launch.
    """

    active: set[str] = field(default_factory=set)
    graph: str | None = None

    def hit(self, name: str, graph: str | None = None) -> bool:
        """Whether a call fails now."""
        return name in self.active and self.graph in (None, graph)


def plan_bytes(onnx_file: Path, graph: str, shapes: list[dict[str, Any]]) -> bytes:
    """A "plan" of the double: which graph to run and its profiles."""
    values = {"double": 1, "onnx": str(onnx_file), "graph": graph, "shapes": shapes}
    return json.dumps(values).encode()


EngineValidity = Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
ExecutionContextAllocationStrategy = Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)


class TensorRtDouble:
    """Stands in for the module `tensorrt` or `tensorrt_rtx`."""

    def __init__(self, device: DoubleDevice, version: str = "1.7.1.116") -> None:
        self.__version__ = version
        self.device = device
        self.faults = Faults()
        self.contexts = 0
        self.logger: Any = None
        double = self

        class ILogger:
            def __init__(self) -> None:
                double.logger = self

        class Runtime(RuntimeDouble):
            def __init__(self, logger: Any) -> None:
                if double.faults.hit("runtime"):
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                super().__init__(double)

        self.ILogger, self.Runtime = ILogger, Runtime
        self.EngineValidity: Any = EngineValidity
        self.CudaGraphStrategy: Any = CudaGraphStrategy
        self.ExecutionContextAllocationStrategy: Any = ExecutionContextAllocationStrategy

    def complain(self, message: str) -> None:
        """Log an error as the library does."""
        self.logger.log("Severity.ERROR", message)


class RuntimeDouble:
    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module

    def get_engine_validity(self, data: bytes) -> tuple[Any, int]:
        validity = self._module.EngineValidity
        return (validity.INVALID, 4) if self._module.faults.hit("validity") else (validity.VALID, 0)

    def deserialize_cuda_engine(self, data: bytes) -> "EngineDouble | None":
        if self._module.faults.hit("deserialize"):
            self._module.complain("Serialization assertion stdVersionRead == kSTD_VERSION failed")
            return None
        return EngineDouble(self._module, json.loads(data))


class RuntimeConfigDouble:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> bool:
        self.strategy = strategy
        return True

    def create_runtime_cache(self) -> "RuntimeCacheDouble":
        return RuntimeCacheDouble()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class RuntimeCacheDouble:
    def __init__(self) -> None:
        self.content = b"kernels"
        self.loaded: bytes | None = None

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, data: bytes) -> bool:
        self.loaded = data
        return data == self.content


class EngineDouble:
    device_memory_size_v2 = 4096

    def __init__(self, module: TensorRtDouble, values: dict[str, Any]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.module, self.graph, self.shapes = module, values["graph"], values["shapes"]
        self.session = ort.InferenceSession(
            values["onnx"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {i.name: _DTYPES[i.type] for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def create_runtime_config(self) -> RuntimeConfigDouble:
        return RuntimeConfigDouble()

    def create_execution_context(self, strategy: Any) -> "ContextDouble | None":
        if self.module.faults.hit("context", self.graph):
            self.module.complain("OutOfMemory (requested 4096 bytes)")
            return None
        return ContextDouble(self)


class ContextDouble:
    def __init__(self, engine: EngineDouble) -> None:
        self.engine, self.module = engine, engine.module
        self.module.contexts += 1
        self.profile = 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.version = 0
        self.memory: tuple[int, int] | None = None

    def __del__(self) -> None:
        self.module.contexts -= 1

    def _fails(self, what: str, message: str) -> bool:
        if self.module.faults.hit(what, self.engine.graph):
            self.module.complain(message)
            return True
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return not self._fails("profile", "profile is in use by another context")

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if self._fails("shape", "dimensions out of range"):
            return False
        low, _, high = self.engine.shapes[self.profile][name]
        self.shapes[name] = tuple(shape)
        self.version += 1
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.version += 1
        return not self._fails("address", "address is not aligned")

    def infer_shapes(self) -> list[str]:
        lacking = [name for name in self.engine.inputs if name not in self.shapes]
        return ["slot_b"] if self._fails("infer", "shapes unknown") else lacking

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def execute_async_v3(self, stream: int) -> bool:
        device = self.module.device
        if self._fails("launch", "Cuda failure: 700"):
            return False
        if self.memory is None or not device.holds(*self.memory):
            self.module.complain("scratch memory was not set")
            return False
        feeds: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in self.engine.inputs.items():
            view = self._view(name, self.shapes[name], dtype)
            if view is None:
                return False
            feeds[name] = view
        version, addresses = self.version, dict(self.addresses)

        def work() -> None:
            # A captured graph holds shapes and addresses of the moment it was captured.
            assert self.version == version, "a context was bound again after it was captured"
            values = self.engine.session.run(None, {n: v.copy() for n, v in feeds.items()})
            for name, value in zip(self.engine.outputs, values, strict=True):
                assert device.holds(addresses[name], value.nbytes), f"{name} does not fit"
                ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)

        device.streams[stream].enqueue(work)
        return True

    def _view(self, name: str, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not self.module.device.holds(self.addresses.get(name, 0), nbytes):
            self.module.complain(f"illegal memory access at {name}")
            return None
        memory = (ctypes.c_ubyte * nbytes).from_address(self.addresses[name])
        view: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(np.dtype(dtype)).reshape(shape)
        return view
