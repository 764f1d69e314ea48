"""Recognises layers in exported float32 graphs: linear maps, norms, GELU, attention.

The exporter spells one attention with about fifty nodes, most of them shape arithmetic. What is
read here is only what a layer computes; `encoders` and `fusion` write it again with few operators.
Anything that does not look as expected is refused, never guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from amlr.errors import ExportError
from amlr.export.precision.graph_tools import prepare

Array = npt.NDArray[Any]
# They change how values lie in memory, and no value.
_LAYOUT = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """`source @ weight + bias`.

    Attributes:
        weight: (inputs, outputs) float32.
        bias: (outputs,) float32; zeros where there is none.
        source: Tensor it reads.
        made: Tensor it makes, bias included.
    """

    weight: Array
    bias: Array
    source: str
    made: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A LayerNormalization over the last axis."""

    gamma: Array
    beta: Array
    epsilon: float
    source: str
    made: str


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
    """One float32 graph and what its tensors are made of."""

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
        self.graph = prepare(light).graph
        self.inputs = {info.name: info for info in self.graph.input}
        self._made_by = {made: node for node in self.graph.node for made in node.output if made}
        self._read_by: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for source in set(node.input):
                self._read_by.setdefault(source, []).append(node)
        self._tensors = {
            tensor.name: tensor for tensor in (*model.graph.initializer, *self.graph.initializer)
        }

    def refuse(self, what: str) -> ExportError:
        """An error that names the graph."""
        return ExportError(f"graph {self.name!r} cannot be fused: {what}")

    # Single steps --------------------------------------------------------------------------------

    def constant(self, name: str) -> Array | None:
        """Value of a constant tensor, or None."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """Value of a constant of one element, or None."""
        value = self.constant(name)
        return float(value.ravel()[0]) if value is not None and value.size == 1 else None

    def maker(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of these kinds."""
        node = self._made_by.get(name)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def readers(self, name: str) -> list[NodeProto]:
        """Nodes that read a tensor's values, in the graph's order."""
        return [node for node in self._read_by.get(name, []) if node.op_type != "Shape"]

    def nodes(self, kind: str) -> list[NodeProto]:
        """All nodes of one kind, in the graph's order."""
        return [node for node in self.graph.node if node.op_type == kind]

    def before(self, name: str) -> str:
        """The tensor that this one is another layout of."""
        while (node := self.maker(name, *_LAYOUT)) is not None:
            name = node.input[0]
        return name

    def after(self, name: str) -> str:
        """The last layout of a tensor before something computes with it."""
        while True:
            readers = self.readers(name)
            if len(readers) != 1 or readers[0].op_type not in _LAYOUT:
                return name
            name = readers[0].output[0]

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors hold the same values, whatever their layout."""
        return self.before(a) == self.before(b)

    def split_constant(self, node: NodeProto) -> tuple[str, Array] | None:
        """The tensor and the constant that a node of two inputs combines, or None."""
        for variable, fixed in (node.input, reversed(node.input)):
            value = self.constant(fixed)
            if value is not None and variable not in self._tensors:
                return variable, value
        return None

    def sources(self, name: str) -> tuple[str, ...]:
        """What the node that makes a tensor reads."""
        node = self.maker(name)
        return () if node is None else tuple(node.input)

    # Layers --------------------------------------------------------------------------------------

    def linear(self, name: str) -> Linear | None:
        """The linear map that makes a tensor, its layout aside, or None."""
        made = self.before(name)
        node = self.maker(made, "Gemm", "MatMul", "Add")
        if node is None:
            return None
        if node.op_type == "Add":
            parts = self.split_constant(node)
            if parts is None or parts[1].ndim != 1:
                return None
            product = self.maker(parts[0], "MatMul")
            inner = None if product is None else self._product(product)
            if inner is None or inner.bias.any() or inner.bias.shape != parts[1].shape:
                return None
            return Linear(weight=inner.weight, bias=parts[1], source=inner.source, made=made)
        return self._product(node)

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
        return Linear(weight=weight, bias=bias, source=node.input[0], made=node.output[0])

    def linear_after(self, name: str) -> Linear:
        """The one linear map that reads a tensor, in any layout.

        Raises:
            ExportError: None does, or several do.
        """
        products = [n for n in self.readers(self.after(name)) if n.op_type in ("Gemm", "MatMul")]
        found = self._product(products[0]) if len(products) == 1 else None
        if found is None:
            raise self.refuse(f"not exactly one linear map reads {name!r}")
        for node in self.readers(found.made):
            parts = self.split_constant(node) if node.op_type == "Add" else None
            if parts is not None and parts[1].shape == found.bias.shape:
                return Linear(
                    weight=found.weight, bias=parts[1], source=found.source, made=node.output[0]
                )
        return found

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
            made=node.output[0],
        )

    def norm_after(self, name: str) -> Norm:
        """The first LayerNormalization that reads a tensor.

        Raises:
            ExportError: None does.
        """
        for node in self.readers(self.after(name)):
            if node.op_type == "LayerNormalization":
                return self.norm(node.output[0])
        raise self.refuse(f"no LayerNormalization follows {name!r}")

    def residual(self, made: str, stream: str) -> str:
        """The sum of a block's result and the stream around it.

        Raises:
            ExportError: The result is added to something else.
        """
        node = next((n for n in self.readers(self.after(made)) if n.op_type == "Add"), None)
        if node is None or not any(self.same(stream, name) for name in node.input):
            raise self.refuse(f"{made!r} is not added to {stream!r}")
        total: str = node.output[0]
        return total

    def gelu_after(self, name: str) -> str:
        """Result of `0.5 x (1 + erf(x / sqrt 2))` of a tensor.

        Raises:
            ExportError: Another activation follows.
        """
        name = self.after(name)
        wrong = self.refuse(f"the activation after {name!r} is not GELU with erf")
        divided = next((n for n in self.readers(name) if n.op_type == "Div"), None)
        if divided is None or not _near(self.scalar(divided.input[1]), math.sqrt(2.0)):
            raise wrong
        chain = [divided]
        for kind in ("Erf", "Add", "Mul", "Mul"):
            readers = self.readers(chain[-1].output[0])
            if len(readers) != 1 or readers[0].op_type != kind:
                raise wrong
            chain.append(readers[0])
        _, _, plus, times, half = chain
        one, two = self.split_constant(plus), self.split_constant(half)
        if one is None or two is None or name not in times.input:
            raise wrong
        if not _near(float(one[1]), 1.0) or not _near(float(two[1]), 0.5):
            raise wrong
        made: str = half.output[0]
        return made

    def attention(self, softmax: NodeProto) -> Attention:
        """The attention around a Softmax.

        Raises:
            ExportError: It is built differently.
        """
        product, scale, mask = self._scores(softmax.input[0])
        left, right = product.input
        left, query_scale = self._unscaled(left)
        right, key_scale = self._unscaled(right)
        query, key = self.linear(left), self.linear(right)
        weights = self.after(softmax.output[0])
        mix = next((n for n in self.readers(weights) if n.op_type == "MatMul"), None)
        if query is None or mix is None or mix.input[0] != weights:
            raise self.refuse(f"the attention at {softmax.name!r} is built differently")
        value = self.linear(mix.input[1])
        keys = self.before(right) if key is None else key.source
        values = self.before(mix.input[1]) if value is None else value.source
        if (key is None) != (value is None) or not self.same(keys, values):
            raise self.refuse(f"keys and values of {softmax.name!r} come from different tensors")
        return Attention(
            query=query, key=key, value=value, keys_from=keys,
            scale=scale * query_scale * key_scale, mask=mask,
            output=self.linear_after(mix.output[0]),
        )  # fmt: skip

    def _scores(self, name: str) -> tuple[NodeProto, float, str | None]:
        """The product under a Softmax, the factor on it, and what is added."""
        scale, mask = 1.0, None
        while (node := self.maker(name)) is not None:
            if node.op_type == "MatMul" and self.split_constant(node) is None:
                return node, scale, mask
            if node.op_type == "Add" and mask is None and self.split_constant(node) is None:
                # The mask is made from an input by Mul or Add, never by a scaled product.
                name, mask = node.input
                if self.maker(self._unscaled(name)[0], "MatMul") is None:
                    name, mask = mask, name
            elif node.op_type in ("Mul", "Div"):
                name, factor = self._unscaled(name)
                scale *= factor
                if self.maker(name, "Mul", "Div") is node:
                    break
            else:
                break
        raise self.refuse(f"scores {name!r} are no scaled product")

    def _unscaled(self, name: str) -> tuple[str, float]:
        """A tensor before its multiplication by a scalar, and the scalar."""
        inner = self.before(name)
        node = self.maker(inner, "Mul", "Div")
        parts = None if node is None else self.split_constant(node)
        if node is None or parts is None or parts[1].size != 1:
            return name, 1.0
        factor = float(parts[1].ravel()[0])
        return parts[0], 1.0 / factor if node.op_type == "Div" else factor


def attributes(node: NodeProto) -> Mapping[str, Any]:
    """A node's attributes as plain values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _near(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=1e-5)
