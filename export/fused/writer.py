"""Writes graphs with onnxruntime's fused operators in float16, float32, or emulated float16."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from amlr.errors import ExportError
from amlr.export.fused.reader import Linear, Norm
from amlr.export.precision.graph_tools import FLOAT, HALF, MOVES
from amlr.export.precision.half import HALF_MAX
from amlr.export.to_onnx import OPSET
from amlr.kernels.arrays import AnyArray

Shape = Sequence[int | str]
CONTRIB = "com.microsoft"
# Readable by every onnxruntime since 1.16, whatever onnx writes it.
IR_VERSION = 8
_FUSED = {"Attention", "BiasGelu", "MultiHeadAttention", "SkipLayerNormalization"}
# What is added to the scores of padding: finite, so a fully masked row gives numbers.
MASKED = -1e4
# Dimensions have the same names in all graphs: free-dimension overrides then fix a bucket.
BATCH, STEPS, UNITS, SLOTS = "batch", "steps", "units", "slots"


class Arithmetic(enum.Enum):
    """What a graph computes in.

    `EMULATED` is float32 arithmetic on weights and results that are rounded to float16: it judges
    a `HALF` graph where no device is at hand.
    """

    HALF = "half"
    FLOAT = "float"
    EMULATED = "emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What keeps attention away from padding.

    Attributes:
        index: int32 tensor for an attention's `mask_index`, or empty.
        bias: Tensor added to the scores, (B or 1, heads, T, T), or empty.
    """

    index: str = ""
    bias: str = ""


class Writer:
    """Collects the nodes, weights, inputs and outputs of one graph.

    Attributes:
        arithmetic: Of all float tensors between the graph's ends.
        takes_index: Whether an attention takes a mask by `Mask.index`.
    """

    takes_index = True

    def __init__(
        self,
        name: str,
        arithmetic: Arithmetic,
        *,
        store: dict[str, TensorProto] | None = None,
    ) -> None:
        """Start an empty graph.

        Args:
            name: Of the graph.
            arithmetic: See `Arithmetic`.
            store: Constants that other graphs of this arithmetic have made already, by name; new
                ones are added.
        """
        self.name, self.arithmetic = name, arithmetic
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[NodeProto] = []
        self._store = {} if store is None else store
        self._weights: dict[str, None] = {}
        self._count = 0

    @property
    def kind(self) -> int:
        """Element type of float tensors between the graph's ends."""
        kind: int = HALF if self.arithmetic is Arithmetic.HALF else FLOAT
        return kind

    # Ends ------------------------------------------------------------------------------------

    def input(self, name: str, shape: Shape, kind: int = TensorProto.INT64) -> str:
        """Declare an input; gives its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def enter(self, name: str) -> str:
        """Values of a float32 input, or of a part of one, in the graph's arithmetic."""
        if self.arithmetic is Arithmetic.HALF:
            return self.op("Cast", [name], to=HALF)
        return self._rounded(name) if self.arithmetic is Arithmetic.EMULATED else name

    def output(self, source: str, name: str, shape: Shape) -> None:
        """Give a tensor as a float32 output."""
        if self.arithmetic is Arithmetic.HALF:
            self._nodes.append(helper.make_node("Cast", [source], [name], name=name, to=FLOAT))
        else:
            for node in self._nodes:
                node.input[:] = [name if i == source else i for i in node.input]
                node.output[:] = [name if o == source else o for o in node.output]
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, list(shape)))

    # Nodes and weights -----------------------------------------------------------------------

    def weight(self, name: str, value: AnyArray) -> str:
        """Store a constant, floats in the graph's arithmetic.

        Raises:
            ExportError: A float is out of the range of float16.
        """
        if name in self._store:
            self._weights[name] = None
            return name
        if value.dtype.kind == "f" and self.arithmetic is not Arithmetic.FLOAT:
            if value.size and float(np.abs(value).max()) > HALF_MAX:
                raise ExportError(
                    f"graph {self.name!r} cannot be fused: {name!r} leaves the float16 range"
                )
            value = value.astype(np.float16)
            if self.arithmetic is Arithmetic.EMULATED:
                value = value.astype(np.float32)
        return self.constant(name, value)

    def constant(self, name: str, value: AnyArray) -> str:
        """Store a constant as it is."""
        if name not in self._store:
            self._store[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        self._weights[name] = None
        return name

    def ints(self, *values: int) -> str:
        """A short vector of integers, for shapes and axes."""
        name = f"ints_{'_'.join(map(str, values))}"
        return self.constant(name, np.array(values, np.int64))

    def zero(self) -> str:
        """The integer 0 as a scalar."""
        return self.constant("zero", np.array(0, np.int64))

    def op(self, kind: str, inputs: Sequence[str], outputs: int = 1, **options: Any) -> str:
        """Add a node of integers, or one that moves values; gives its first output."""
        return self.ops(kind, inputs, outputs, **options)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int = 1, **options: Any) -> list[str]:
        """As `op`, with all outputs."""
        self._count += 1
        name = f"{kind}_{self._count}"
        made = [name if i == 0 else f"{name}_{i}" for i in range(outputs)]
        domain = CONTRIB if kind in _FUSED else ""
        node = helper.make_node(kind, list(inputs), made, name=name, domain=domain, **options)
        self._nodes.append(node)
        return made

    def compute(self, kind: str, inputs: Sequence[str], **options: Any) -> str:
        """Add a node of float arithmetic; gives its result, rounded where that is emulated."""
        return self._result(self.op(kind, inputs, **options), kind)

    def _result(self, name: str, kind: str) -> str:
        emulated = self.arithmetic is Arithmetic.EMULATED and kind not in MOVES
        return self._rounded(name) if emulated else name

    def _rounded(self, name: str) -> str:
        return self.op("Cast", [self.op("Cast", [name], to=HALF)], to=FLOAT)

    # Layers ----------------------------------------------------------------------------------

    def product(self, source: str, linear: Linear, label: str) -> str:
        """`source @ weight`, without the bias."""
        return self.compute("MatMul", [source, self.weight(f"{label}.weight", linear.weight)])

    def bias(self, linear: Linear, label: str) -> str:
        """Bias of a linear map as a constant."""
        return self.weight(f"{label}.bias", linear.bias)

    def linear(self, source: str, linear: Linear, label: str) -> str:
        """`source @ weight + bias`."""
        made = self.product(source, linear, label)
        return self.compute("Add", [made, self.bias(linear, label)]) if linear.bias.any() else made

    def gelu(self, source: str, linear: Linear, label: str) -> str:
        """GELU with erf of a linear map."""
        made = self.product(source, linear, label)
        return self.compute("BiasGelu", [made, self.bias(linear, label)])

    def norm(self, source: str, norm: Norm, label: str) -> str:
        """LayerNormalization; onnxruntime takes its statistics in float32."""
        inputs = [source, *self._norm_weights(norm, label)]
        return self.compute("LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon)

    def skip_norm(
        self, source: str, stream: str, norm: Norm, label: str, bias: str = "", *, keep: bool
    ) -> tuple[str, str]:
        """LayerNormalization of `source + stream + bias`, and that sum where it is kept."""
        inputs = [source, stream, *self._norm_weights(norm, label), *([bias] if bias else [])]
        kind = "SkipLayerNormalization"
        self._count += 1
        name = f"{kind}_{self._count}"
        made = [name, "", "", f"{name}_sum"] if keep else [name]
        self._nodes.append(
            helper.make_node(kind, inputs, made, name=name, domain=CONTRIB, epsilon=norm.epsilon)
        )
        total = self._result(made[3], kind) if keep else ""
        return self._result(name, kind), total

    def _norm_weights(self, norm: Norm, label: str) -> tuple[str, str]:
        return (
            self.weight(f"{label}.gamma", norm.gamma),
            self.weight(f"{label}.beta", norm.beta),
        )

    def self_attention(
        self, source: str, qkv: Sequence[Linear], heads: int, label: str, mask: Mask
    ) -> str:
        """Attention of a tensor with itself: one product for queries, keys and values."""
        linear = joined(qkv)
        scale = float((linear.weight.shape[1] // 3 // heads) ** -0.5)
        if self.arithmetic is Arithmetic.EMULATED:
            # The operator rounds what its product gives; here that takes three nodes.
            made = self.linear(source, linear, label)
            parts = self.ops("Split", [made], 3, axis=-1)
            inputs = [*parts, "", mask.index, mask.bias]
            return self.compute("MultiHeadAttention", inputs, num_heads=heads, scale=scale)
        weight, bias = self.weight(f"{label}.weight", linear.weight), self.bias(linear, label)
        inputs = [source, weight, bias, mask.index, "", mask.bias]
        while not inputs[-1]:
            inputs.pop()
        return self.compute("Attention", inputs, num_heads=heads, scale=scale)

    # The graph -------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        """The finished graph."""
        weights = [self._store[name] for name in self._weights]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, weights)
        used = {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}
        domains = [helper.make_opsetid(*domain) for domain in used.items()]
        model = helper.make_model(graph, opset_imports=domains, producer_name="amlr")
        model.ir_version = IR_VERSION
        return model


def joined(linears: Sequence[Linear]) -> Linear:
    """Linear maps of one tensor as one map, their results beside each other."""
    return Linear(
        weight=np.concatenate([part.weight for part in linears], axis=1),
        bias=np.concatenate([part.bias for part in linears]),
    )
