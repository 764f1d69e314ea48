"""Small helpers on ONNX graphs that conversion, emulation, calibration and judges share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from amlr.errors import ExportError
from amlr.runtime.providers.onnxruntime_library import import_onnxruntime

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Feed = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Feed], dict[str, npt.NDArray[Any]]]

# They move or choose values and never compute one: rounding after them changes nothing.
MOVES = {
    "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "Max", "Min", "Pad", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
}  # fmt: skip
PRODUCTS = {"Conv", "Gemm", "MatMul"}


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with constants as initializers, aliases removed and every node named once.

    Raises:
        ExportError: A node holds a subgraph (Loop, If, Scan), which the rooms' graphs never do.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    alias: dict[str, str] = {}
    outputs = {output.name for output in graph.output}
    nodes: list[NodeProto] = []
    seen: set[str] = set()
    for node in graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
               for a in node.attribute):  # fmt: skip
            raise ExportError(f"node {node.name!r} ({node.op_type}) holds a subgraph; rewrite it")
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Constant":
            tensor = numpy_helper.from_array(_constant(node), node.output[0])
            constants[tensor.name] = tensor
            graph.initializer.append(tensor)
        elif node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            stem = node.name or f"{node.op_type}_{node.output[0]}"
            node.name = stem if stem not in seen else f"{stem}:{node.output[0]}"
            seen.add(node.name)
            nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return drop_unused(result)


def _constant(node: NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        array: np.ndarray = numpy_helper.to_array(value)
        return array
    kind = np.float32 if attribute.name.startswith("value_float") else np.int64
    return np.asarray(value, kind)


def drop_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove initializers nobody reads, in place."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        copies = [TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
    return model


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of a model with inferred shapes.

    Raises:
        ExportError: A tensor's type is unknown, or it is float64 or bfloat16.
    """
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.output, *graph.value_info):
        types[info.name] = info.type.tensor_type.elem_type
    for node in graph.node:
        for name in node.output:
            kind = types.get(name, 0) if name else TensorProto.BOOL
            if kind in (TensorProto.UNDEFINED, TensorProto.DOUBLE, TensorProto.BFLOAT16):
                raise ExportError(
                    f"tensor {name!r} of node {node.name!r} ({node.op_type}) has element type "
                    f"{TensorProto.DataType.Name(kind)}; expected float32 or an integer type"
                )
    return types


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Throw old shapes away and infer all again, checking types on the way."""
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def is_flipped(product: NodeProto) -> bool:
    """Whether a product of matrices reads its second one transposed."""
    return any(attribute.name == "transB" and attribute.i for attribute in product.attribute)


def producers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def float_inputs(node: NodeProto, types: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Positions and names of a node's floating-point inputs."""
    for place, name in enumerate(node.input):
        if name and types.get(name) in (FLOAT, HALF):
            yield place, name


def cast_node(source: str, target: str, kind: int) -> NodeProto:
    """A Cast named after both its ends."""
    return helper.make_node("Cast", [source], [target], name=f"{source}->{target}", to=kind)


def open_session(model: onnx.ModelProto, *, threads: int = 1, is_optimised: bool = False) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        model: The graph, with its weights.
        threads: 0 lets onnxruntime choose.
        is_optimised: False runs the graph exactly as it is written: optimisation would remove the
            pairs of casts that emulate rounding.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    if not is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def session_runner(model: onnx.ModelProto, threads: int = 1) -> Run:
    """A callable from feeds to outputs by name."""
    session = open_session(model, threads=threads)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feed) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run
