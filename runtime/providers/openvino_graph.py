"""Compiled OpenVINO graphs: one infer request per concurrent call, and graphs cut in two."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import PlanMismatchError
from amlr.kernels.arrays import Floats

# What a body hands to its tail: units plus what they took from the picture, before LayerNorm.
JOINED = "joined_units"


class CompiledGraph:
    """A compiled model with as many infer requests as were ever needed at the same time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._outputs = [_short_name(output) for output in compiled.outputs]
        self.inputs = frozenset(_short_name(given) for given in compiled.inputs)
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    @property
    def arithmetic(self) -> str:
        """What the library says it computes floats in: `f32` or `bf16`."""
        kind = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        return str(kind.get_type_name())

    def run(self, feed: dict[str, npt.NDArray[Any]]) -> dict[str, Floats]:
        """Outputs by name, as arrays of their own."""
        with self._lock:
            # The last one used: its memory is the warmest.
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            request.infer(feed, share_inputs=True)
            return {
                name: request.get_output_tensor(place).data.copy()
                for place, name in enumerate(self._outputs)
            }
        finally:
            with self._lock:
                self._idle.append(request)


def read_graph(core: Any, path: Path) -> Any:
    """Read an ONNX file with its weights.

    Raises:
        PlanMismatchError: This OpenVINO cannot read it.
    """
    try:
        return core.read_model(path)
    # The library raises RuntimeError and its own subclasses of it.
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PlanMismatchError(f"openvino cannot read {path.name}: {lines[-1][:200]}") from error


def split_heads(model: Any) -> tuple[Any, Any]:
    """Cut a fusion graph before its last LayerNorm.

    The library has one arithmetic per compiled graph and no way to except single nodes, so what
    must stay float32 becomes a graph of its own.

    Returns:
        The body, which gives `joined_units`, and the tail, which takes it and what else it needs of
        the graph's inputs, and gives the graph's outputs. The model given is used up.
    """
    import openvino
    from openvino import opset13 as ops

    norm = [op for op in model.get_ordered_ops() if op.get_type_name() == "MVN"][-1]
    joined = norm.input(0).get_source_output()
    parameter = ops.parameter(joined.get_partial_shape(), np.float32, name=JOINED)
    parameter.output(0).get_tensor().set_names({JOINED})
    norm.input(0).replace_source_output(parameter.output(0))
    joined.get_tensor().set_names({JOINED})
    results = model.get_results()
    used = _ancestors(results)
    others = [p for p in model.get_parameters() if p.get_friendly_name() in used]
    tail = openvino.Model(results, [parameter, *others], "tail")
    body = openvino.Model([joined], model.get_parameters(), "body")
    return body, tail


def _ancestors(nodes: Iterable[Any]) -> set[str]:
    """Names of all nodes that these depend on."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            waiting += [value.get_source_output().get_node() for value in node.inputs()]
    return found


def _short_name(output: Any) -> str:
    name: str = output.get_any_name()
    return name
