"""What a float16 graph computes, in float32 arithmetic that rounds every half tensor.

onnxruntime on a CPU computes half graphs in float32 and rounds where it pleases, so it cannot
judge them. Here each half tensor passes through Cast(float16) and Cast(float32) right after the
node that makes it: rounding, subnormals and overflow to infinity are those of IEEE half precision.
Sums inside one product stay float32, as on tensor cores that accumulate in float32.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from amlr.export.precision.graph_tools import (
    FLOAT,
    HALF,
    MOVES,
    cast_node,
    infer,
    prepare,
    session_runner,
    tensor_types,
)

RANGE_PREFIX = "absmax__"


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a strongly typed half graph as a float32 graph with explicit rounding."""
    result = infer(prepare(model))
    types, graph = tensor_types(result), result.graph
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
                attribute.i = FLOAT
            elif attribute.name == "value" and attribute.t.data_type == HALF:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value))
        if node.op_type in MOVES:
            continue
        for place, made in enumerate(node.output):
            if made and types[made] == HALF:
                raw, half = f"{made}__raw", f"{made}__f16"
                node.output[place] = raw
                nodes += [cast_node(raw, half, HALF), cast_node(half, made, FLOAT)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return infer(result)


def with_ranges(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add the largest magnitude of every computed float32 tensor as a further scalar output."""
    result = infer(prepare(model))
    types, graph = tensor_types(result), result.graph
    for node in list(graph.node):
        if node.op_type in MOVES or node.op_type == "Cast":
            continue
        for made in node.output:
            if made and types[made] == FLOAT:
                size, most = f"{made}__abs", f"{RANGE_PREFIX}{node.name}"
                graph.node.extend(
                    [
                        helper.make_node("Abs", [made], [size], name=size),
                        helper.make_node("ReduceMax", [size], [most], name=most, keepdims=0),
                    ]
                )
                graph.output.append(helper.make_tensor_value_info(most, TensorProto.FLOAT, []))
                break
    return result


class RangeScan:
    """Largest magnitude of every tensor of one graph over many runs.

    Attributes:
        largest: By node name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._run = session_runner(with_ranges(model))
        self.largest: dict[str, float] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once, take the ranges in, and give the graph's own outputs."""
        outputs: dict[str, np.ndarray] = {}
        for name, value in self._run(feeds).items():
            if name.startswith(RANGE_PREFIX):
                node = name.removeprefix(RANGE_PREFIX)
                self.largest[node] = max(self.largest.get(node, 0.0), float(value))
            else:
                outputs[name] = value
        return outputs
