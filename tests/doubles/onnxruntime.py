"""onnxruntime whose CUDA provider is its CPU provider, on the memory of a `DoubleDevice`.

Inputs are read and outputs written at the bound addresses, in the order of the stream: the real
library computes, with the binding, the options and the graphs that CUDA would get.
"""

from dataclasses import dataclass, field
from typing import Any

import onnxruntime

from doubles.device import DoubleDevice


@dataclass
class Faults:
    """What goes wrong, by name; `graph` limits it to one.

    Names: session, memcpy, fallback, bind, run, capture.
    """

    active: set[str] = field(default_factory=set)
    graph: str | None = None

    def hit(self, name: str, graph: str) -> bool:
        """Whether a call fails now."""
        return name in self.active and self.graph in (None, graph)


class OnnxRuntimeDouble:
    """Stands in for the module `onnxruntime`."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions

    def __init__(self, device: DoubleDevice) -> None:
        self.device, self.faults = device, Faults()
        self.sessions = 0
        self.provider_options: list[dict[str, str]] = []
        double = self

        class InferenceSession(SessionDouble):
            def __init__(self, path: str, options: Any, providers: Any) -> None:
                super().__init__(double, path, options, providers)

        self.InferenceSession = InferenceSession


class SessionDouble:
    def __init__(self, module: OnnxRuntimeDouble, path: str, options: Any, providers: Any) -> None:
        ((name, values),) = providers
        assert name == "CUDAExecutionProvider"
        self.graph = path.rpartition("/")[2].removesuffix(".onnx")
        if module.faults.hit("session", self.graph):
            raise RuntimeError("CUDNN failure 1001\nat line 1")
        if module.faults.hit("memcpy", self.graph) and values["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature as requested")
        module.provider_options.append(values)
        self.module, self.options = module, options
        self.stream = module.device.streams[int(values["user_compute_stream"])]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        module.sessions += 1

    def __del__(self) -> None:
        if hasattr(self, "session"):
            self.module.sessions -= 1

    def get_providers(self) -> list[str]:
        fallback = self.module.faults.hit("fallback", self.graph)
        return ["CPUExecutionProvider"] if fallback else ["CUDAExecutionProvider"]

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def io_binding(self) -> "BindingDouble":
        return BindingDouble(self)

    def run_with_iobinding(self, binding: "BindingDouble", options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        assert options.get_run_config_entry("gpu_graph_id") == "-1"
        if self.module.faults.hit("run", self.graph):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        if self.stream.recording is not None and self.module.faults.hit("capture", self.graph):
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        version = binding.version

        def work() -> None:
            # A captured graph holds the addresses of the moment it was captured.
            assert binding.version == version, "a binding was changed after it was captured"
            self.session.run_with_iobinding(binding.binding)

        self.stream.enqueue(work)


class BindingDouble:
    def __init__(self, session: SessionDouble) -> None:
        self.session, self.binding = session, session.session.io_binding()
        self.version = 0

    def clear_binding_inputs(self) -> None:
        self.binding.clear_binding_inputs()
        self.version += 1

    def clear_binding_outputs(self) -> None:
        self.binding.clear_binding_outputs()
        self.version += 1

    def bind_input(self, *arguments: Any) -> None:
        self.binding.bind_input(*self._checked(*arguments))

    def bind_output(self, *arguments: Any) -> None:
        self.binding.bind_output(*self._checked(*arguments))

    def _checked(
        self, name: str, device: str, ordinal: int, dtype: Any, shape: list[int], address: int
    ) -> tuple[Any, ...]:
        module = self.session.module
        assert (device, ordinal) == ("cuda", 0)
        nbytes = dtype(0).itemsize
        for size in shape:
            nbytes *= size
        if module.faults.hit("bind", self.session.graph) or not module.device.holds(
            address, nbytes
        ):
            raise RuntimeError(f"illegal address {address:#x} for {name}")
        return name, "cpu", 0, dtype, shape, address
