"""Recognises layers in exported float32 graphs: linear maps, norms, GELU, attention.

The exporter spells one attention with about fifty nodes, most of them shape arithmetic. What is
read here is only what a layer computes; `encoders` and `fusion` write it again with few operators.
A graph is read from its outputs back to its inputs. Anything that does not look as expected is
refused, never guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from amlr.errors import ExportError
from amlr.export.precision.graph_tools import prepare
from amlr.kernels.arrays import AnyArray

# They change how values lie in memory, and no value.
_LAYOUT = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """`source @ weight + bias`.

    Attributes:
        weight: (inputs, outputs) float32.
        bias: (outputs,) float32; zeros where there is none.
        source: Tensor it reads.
    """

    weight: AnyArray
    bias: AnyArray
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A LayerNormalization over the last axis."""

    gamma: AnyArray
    beta: AnyArray
    epsilon: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """Softmax attention of one layer.

    Attributes:
        query: Its linear map.
        key: Its linear map, or None where keys are the source itself.
        value: As `key`.
        keys_from: Tensor that keys are, or are projected from.
        scale: Factor of the scores.
        mask: Tensor added to the scores, or None.
        output: Linear map of the heads' results, beside each other.
    """

    query: Linear
    key: Linear | None
    value: Linear | None
    keys_from: str
    scale: float
    mask: str | None
    output: Linear

    @property
    def heads(self) -> int:
        """How many heads: scores are scaled by one over the root of a head's width.

        Raises:
            ExportError: The scale does not divide the width.
        """
        width = round(1.0 / self.scale**2)
        inner = self.query.weight.shape[1]
        if width < 1 or inner % width or not math.isclose(self.scale, width**-0.5, rel_tol=1e-4):
            raise ExportError(
                f"an attention scales by {self.scale:.6g}, which fits no head of {inner} values"
            )
        return int(inner) // width


class Reader:
    """One float32 graph and what its tensors are made of.

    Attributes:
        attentions: How many attentions it has.
    """

    def __init__(self, name: str, model: onnx.ModelProto) -> None:
        """Index a graph.

        Args:
            name: For messages.
            model: With its weights; not changed.
        """
        self.name = name
        # Without the weights, which stay where they are: they can be many hundred megabytes.
        light = onnx.ModelProto()
        for part in ("node", "input", "output"):
            getattr(light.graph, part).extend(getattr(model.graph, part))
        graph = prepare(light).graph
        self.attentions = sum(node.op_type == "Softmax" for node in graph.node)
        self.inputs = {info.name: info for info in graph.input}
        self._made_by = {made: node for node in graph.node for made in node.output if made}
        self._constants = {
            tensor.name: tensor for tensor in (*model.graph.initializer, *graph.initializer)
        }

    def refuse(self, what: str) -> ExportError:
        """An error that names the graph."""
        return ExportError(f"graph {self.name!r} cannot be fused: {what}")

    # Single steps --------------------------------------------------------------------------------

    def constant(self, name: str) -> AnyArray | None:
        """Value of a constant tensor, or None."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def maker(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of these kinds."""
        node = self._made_by.get(name)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def before(self, name: str) -> str:
        """The tensor that this one is another layout of."""
        while (node := self.maker(name, *_LAYOUT)) is not None:
            name = node.input[0]
        return name

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors hold the same values, whatever their layout."""
        return self.before(a) == self.before(b)

    def combined(self, name: str, *kinds: str) -> tuple[str, AnyArray] | None:
        """The tensor and the constant that a node of these kinds combines into one, or None."""
        node = self.maker(self.before(name), *kinds)
        for variable, fixed in () if node is None else (node.input, node.input[::-1]):
            value = self.constant(fixed)
            if value is not None and variable not in self._constants:
                return variable, value
        return None

    # Layers --------------------------------------------------------------------------------------

    def linear(self, name: str) -> Linear | None:
        """The linear map that makes a tensor, its layout aside, or None."""
        node = self.maker(self.before(name), "Gemm", "MatMul")
        if node is not None:
            return self._product(node)
        parts = self.combined(name, "Add")
        product = None if parts is None else self.maker(parts[0], "MatMul")
        inner = None if product is None else self._product(product)
        if parts is None or inner is None or inner.bias.shape != parts[1].shape:
            return None
        return replace(inner, bias=parts[1])

    def _product(self, node: NodeProto) -> Linear | None:
        weight = self.constant(node.input[1])
        if weight is None or weight.ndim != 2:
            return None
        options = attributes(node)
        if node.op_type == "Gemm":
            factors = options.get("alpha", 1.0), options.get("beta", 1.0), options.get("transA", 0)
            if factors != (1.0, 1.0, 0):
                return None
            weight = weight.T if options.get("transB", 0) else weight
        bias = self.constant(node.input[2]) if len(node.input) > 2 else None
        if bias is None:
            bias = np.zeros(weight.shape[1], np.float32)
        return Linear(weight=weight, bias=bias, source=node.input[0])

    def norm(self, name: str) -> Norm:
        """The LayerNormalization that makes a tensor.

        Raises:
            ExportError: Something else makes it.
        """
        node = self.maker(self.before(name), "LayerNormalization")
        gamma = None if node is None else self.constant(node.input[1])
        if node is None or gamma is None:
            raise self.refuse(f"{name!r} is not made by a LayerNormalization")
        beta = self.constant(node.input[2]) if len(node.input) > 2 else None
        return Norm(
            gamma=gamma,
            beta=np.zeros_like(gamma) if beta is None else beta,
            epsilon=float(attributes(node).get("epsilon", 1e-5)),
            source=node.input[0],
        )

    def residual(self, total: str) -> tuple[Linear, str]:
        """The linear map that ends a block, and the stream that it is added to.

        Raises:
            ExportError: The tensor is no such sum.
        """
        node = self.maker(self.before(total), "Add")
        for block, stream in () if node is None else (node.input, node.input[::-1]):
            linear = self.linear(block)
            if linear is not None:
                return linear, stream
        raise self.refuse(f"{total!r} is not a linear map added to a stream")

    def mlp(self, outer: Linear) -> Linear:
        """The linear map whose GELU, `0.5 x (1 + erf(x / sqrt 2))`, another one reads.

        Raises:
            ExportError: It reads something else.
        """
        product = self.maker(self._undone(outer.source, "Mul", 0.5), "Mul")
        for x, y in () if product is None else (product.input, product.input[::-1]):
            erf = self.maker(self._undone(y, "Add", 1.0), "Erf")
            divided = "" if erf is None else self._undone(erf.input[0], "Div", math.sqrt(2.0))
            inner = self.linear(x)
            if divided and inner is not None and self.same(divided, x):
                return inner
        raise self.refuse(f"{outer.source!r} is not GELU with erf of a linear map")

    def _undone(self, name: str, kind: str, value: float) -> str:
        """The tensor that a node of this kind combines with this number, or an empty name."""
        parts = self.combined(name, kind)
        if parts is None or parts[1].size != 1:
            return ""
        return parts[0] if math.isclose(parts[1].item(), value, rel_tol=1e-5) else ""

    def attention(self, output: Linear) -> Attention:
        """The attention whose results a linear map reads.

        Raises:
            ExportError: It reads something else.
        """
        mix = self.maker(self.before(output.source), "MatMul")
        softmax = None if mix is None else self.maker(self.before(mix.input[0]), "Softmax")
        if mix is None or softmax is None:
            raise self.refuse(f"{output.source!r} is made by no attention")
        product, scale, mask = self._scores(softmax.input[0])
        left, query_scale = self._unscaled(product.input[0])
        right, key_scale = self._unscaled(product.input[1])
        query, key, value = (self.linear(name) for name in (left, right, mix.input[1]))
        keys = self.before(right) if key is None else key.source
        values = self.before(mix.input[1]) if value is None else value.source
        if query is None or (key is None) != (value is None) or not self.same(keys, values):
            raise self.refuse(f"the attention at {softmax.name!r} is built differently")
        return Attention(
            query=query, key=key, value=value, keys_from=keys,
            scale=scale * query_scale * key_scale, mask=mask, output=output,
        )  # fmt: skip

    def _scores(self, name: str) -> tuple[NodeProto, float, str | None]:
        """The product under a Softmax, the factor on it, and what is added."""
        total = self.maker(name, "Add")
        sides = [(name, None)] if total is None else [tuple(total.input), tuple(total.input[::-1])]
        for scaled, mask in sides:
            inner, scale = self._unscaled(scaled)
            product = self.maker(inner, "MatMul")
            if product is not None and self.combined(inner, "MatMul") is None:
                return product, scale, mask
        raise self.refuse(f"scores {name!r} are no scaled product")

    def _unscaled(self, name: str) -> tuple[str, float]:
        """A tensor before its multiplication by a scalar, and the scalar."""
        node, parts = self.maker(self.before(name)), self.combined(name, "Mul", "Div")
        if node is None or parts is None or parts[1].size != 1:
            return name, 1.0
        factor = float(parts[1].ravel()[0])
        return parts[0], 1.0 / factor if node.op_type == "Div" else factor


def attributes(node: NodeProto) -> Mapping[str, Any]:
    """A node's attributes as plain values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
