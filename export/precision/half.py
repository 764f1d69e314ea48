"""Float32 graphs to strongly typed float16 graphs with float32 islands.

The type of every tensor is written in the graph, so TensorRT 10, TensorRT 11 and TensorRT-RTX have
nothing to choose. Inputs and outputs stay float32. LayerNormalization computes in float32 (an
activation's square leaves the range of float16 long before the activation does), and so does the
centring of regions, whose input is float32 anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from amlr.errors import ExportError
from amlr.export.precision.graph_tools import (
    FLOAT,
    HALF,
    PRODUCTS,
    cast_node,
    drop_unused,
    float_inputs,
    infer,
    prepare,
    producers,
    tensor_types,
)

HALF_MAX = 65504.0
# Masks beyond the range of float16 become this: far from every score, and finite after adding one.
MASK_LIMIT = 30000.0
# No weight is this large: it is the mask's "minus infinity".
MASK_LIKE = 1e30
_SHAPE_ONLY = {"Shape", "Size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """A node that computes in float32, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfGraph:
    """A converted graph.

    Attributes:
        model: Strongly typed, with inferred types.
        islands: Nodes that stayed float32.
        half_nodes: How many nodes compute in float16.
        casts: Casts between the two types, the graph's ends included.
    """

    model: onnx.ModelProto
    islands: tuple[Island, ...]
    half_nodes: int
    casts: int


def to_half(name: str, model: onnx.ModelProto, keep: Mapping[str, str] | None = None) -> HalfGraph:
    """Convert one float32 graph.

    Args:
        name: Graph name, for messages.
        model: Float32 graph with its weights; not changed.
        keep: Further nodes that stay float32: name to reason.

    Raises:
        ExportError: The graph holds types that cannot be converted, or `keep` names no node.
    """
    try:
        return _Converter(name, infer(prepare(model)), keep or {}).run()
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"graph {name!r} has mixed types after conversion: {error}") from error


class _Converter:
    """State of one conversion: the new node list and which typed copies of tensors exist."""

    def __init__(self, name: str, model: onnx.ModelProto, keep: Mapping[str, str]) -> None:
        self.name, self.model = name, model
        self.types = tensor_types(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.reasons = dict(keep) | policy(model, self.types)
        unknown = set(keep) - {node.name for node in model.graph.node}
        if unknown:
            raise ExportError(f"graph {name!r} has no nodes {sorted(unknown)}")
        self.now = dict(self.types)  # type of each tensor in the new graph
        self.copies: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.casts, self.half_nodes = 0, 0
        self.islands: list[Island] = []

    def run(self) -> HalfGraph:
        """Convert node by node, then the graph's outputs."""
        outputs = {output.name for output in self.model.graph.output}
        for node in self.model.graph.node:
            self._convert(node, outputs)
        graph = self.model.graph
        for tensor in graph.initializer:
            if tensor.data_type != FLOAT:
                self.weights[tensor.name] = tensor
        weights = [TensorProto.FromString(t.SerializeToString()) for t in self.weights.values()]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(weights)
        result = infer(drop_unused(self.model))
        onnx.checker.check_model(result, full_check=False)
        return HalfGraph(
            model=result, islands=tuple(self.islands),
            half_nodes=self.half_nodes, casts=self.casts,
        )  # fmt: skip

    def _convert(self, node: NodeProto, outputs: set[str]) -> None:
        places = list(float_inputs(node, self.types))
        makes_float = any(self.types[o] == FLOAT for o in node.output if o)
        if not makes_float and (not places or node.op_type in _SHAPE_ONLY):
            self.nodes.append(node)
            return
        kind = FLOAT if node.name in self.reasons else HALF
        if kind == FLOAT:
            reason = self.reasons[node.name]
            self.islands.append(Island(node=node.name, op=node.op_type, reason=reason))
        else:
            self.half_nodes += 1
        for place, source in places:
            node.input[place] = self._as(source, kind)
        self._set_attributes(node, kind)
        late: list[NodeProto] = []
        for place, made in enumerate(node.output):
            if not made or self.types[made] != FLOAT:
                continue
            if made in outputs and kind == HALF:
                # The graph's own output keeps its name and is float32.
                node.output[place] = f"{made}__half"
                self.now[node.output[place]] = HALF
                self.copies[(made, HALF)] = node.output[place]
                late.append(cast_node(node.output[place], made, FLOAT))
                self.casts += 1
            else:
                self.now[made] = kind
        self.nodes.extend((node, *late))

    def _set_attributes(self, node: NodeProto, kind: int) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = kind
            elif attribute.name == "value" and attribute.t.data_type == FLOAT:
                value = _rounded(numpy_helper.to_array(attribute.t), kind)
                attribute.t.CopyFrom(numpy_helper.from_array(value))

    def _as(self, source: str, kind: int) -> str:
        """Name of `source` in the wanted type, cast once however many readers it has."""
        if (source, kind) in self.copies:
            return self.copies[source, kind]
        if source in self.constants:
            value = _rounded(numpy_helper.to_array(self.constants[source]), kind)
            target = source if kind == FLOAT else f"{source}__half"
            self.weights[target] = numpy_helper.from_array(value, target)
        elif self.now[source] == kind:
            target = source
        else:
            target = f"{source}__{'half' if kind == HALF else 'float'}"
            self.nodes.append(cast_node(source, target, kind))
            self.casts += 1
        self.copies[source, kind] = target
        return target


def _rounded(value: np.ndarray, kind: int) -> np.ndarray:
    if kind == FLOAT:
        return value
    if value.size and float(np.max(np.abs(value))) > HALF_MAX:
        # Only masks are left: nodes with other weights out of range are islands.
        value = np.clip(value, -MASK_LIMIT, MASK_LIMIT)
    return value.astype(np.float16)


def policy(model: onnx.ModelProto, types: Mapping[str, int]) -> dict[str, str]:
    """Nodes that stay float32 before any search, each with its reason."""
    made_by = producers(model)
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        before = [made_by[name] for name in node.input if name in made_by]
        if node.op_type == "LayerNormalization":
            reasons[node.name] = "squares of activations leave the float16 range"
        elif node.op_type == "ReduceMean":
            reasons[node.name] = "sum over many regions"
        elif node.op_type == "Sub" and any(b.op_type == "ReduceMean" for b in before):
            reasons[node.name] = "centring before rounding; its input is float32 anyway"
    reasons |= _index_arithmetic(model, types, made_by)
    return reasons | _big_weights(model, reasons)


def _index_arithmetic(
    model: onnx.ModelProto, types: Mapping[str, int], made_by: Mapping[str, NodeProto]
) -> dict[str, str]:
    """Float nodes whose value becomes an integer: float16 counts only to 2048."""
    reasons: dict[str, str] = {}
    stack = [
        node
        for node in model.graph.node
        if node.op_type == "Cast"
        and types[node.input[0]] == FLOAT
        and types[node.output[0]] not in (FLOAT, TensorProto.BOOL)
    ]
    while stack:
        node = stack.pop()
        if node.name in reasons or node.op_type in PRODUCTS:
            continue
        reasons[node.name] = "becomes an integer"
        stack += [made_by[n] for n in node.input if n in made_by and types[n] == FLOAT]
    return reasons


def _big_weights(model: onnx.ModelProto, known: Mapping[str, str]) -> dict[str, str]:
    big = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == FLOAT:
            size = np.abs(numpy_helper.to_array(tensor))
            if bool(np.any((size > HALF_MAX) & (size < MASK_LIKE))):
                big.add(tensor.name)
    return {
        node.name: "a weight is out of the float16 range"
        for node in model.graph.node
        if node.name not in known and any(name in big for name in node.input)
    }
