"""Static int8 graphs: QuantizeLinear and DequantizeLinear around chosen products.

Activations are uint8 with one static scale and zero point per tensor, weights int8 with one scale
per output channel: the pair that CPUs multiply at full speed, and whose result depends on no other
post. Everything not chosen stays float32. onnxruntime and OpenVINO both fuse the pattern.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from amlr.export.ladder.scales import Scale, round_weight
from amlr.export.precision.graph_tools import prepare

Floats = npt.NDArray[np.float32]
_PRODUCTS = ("Gemm", "MatMul", "Conv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product of an activation and a constant weight.

    Attributes:
        node: Name of its node.
        activation: Tensor it reads.
        weight: Initializer it multiplies with.
    """

    node: str
    activation: str
    weight: str


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Products with a constant weight, in graph order; `model` comes from `prepare`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        Product(node=node.name, activation=node.input[0], weight=node.input[1])
        for node in model.graph.node
        if node.op_type in _PRODUCTS
        and node.input[1] in constants
        and node.input[0] not in constants
    ]


def residuals(model: onnx.ModelProto) -> set[str]:
    """Inputs of the additions between convolutions, which are worth adding in int8."""
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    found: set[str] = set()
    for node in model.graph.node:
        kinds = [made_by.get(name) for name in node.input]
        if node.op_type == "Add" and "Conv" in kinds and set(kinds) <= {"Conv", "Add"}:
            found.update(node.input)
    return found


def insert_qdq(
    model: onnx.ModelProto,
    scales: Mapping[str, Scale],
    products: Collection[str],
) -> onnx.ModelProto:
    """Quantize some products of a graph.

    Args:
        model: From `prepare`, float32.
        scales: For each activation that the products read; additions between two of them that
            `residuals` names are quantized too.
        products: Names of the nodes to quantize.

    Returns:
        A new model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result, scales)
    sums, read = residuals(model), set(scales)
    for node in model.graph.node:
        if node.name in products:
            writer.product(node)
        elif node.op_type == "Add" and sums.issuperset(node.input) and read.issuperset(node.input):
            # Adding in int8 spares two conversions of a picture.
            writer.keep(node, [writer.activation(name) for name in node.input])
        else:
            writer.keep(node, list(node.input))
    return writer.finish()


class _Writer:
    def __init__(self, model: onnx.ModelProto, scales: Mapping[str, Scale]) -> None:
        self._model, self._scales = model, scales
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[NodeProto] = []
        self._new: dict[str, TensorProto] = {}
        self._done: set[str] = set()

    def keep(self, node: NodeProto, inputs: list[str]) -> None:
        """Copy a node, reading other tensors."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        self._nodes.append(copy)

    def product(self, node: NodeProto) -> None:
        """Write a product with both sides quantized."""
        source = self.activation(node.input[0])
        if node.op_type == "Conv":
            weight = self._weight(node.input[1], axis=0)
        else:
            flip = node.op_type == "Gemm" and _has(node, "transB")
            smooth = self._scales[node.input[0]].smooth_d
            weight = self._weight(node.input[1], axis=1, flip=flip, smooth_d=smooth)
        inputs = [source, weight]
        if len(node.input) > 2:
            inputs.append(self._bias(node.input[2], node.input[0], node.input[1]))
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        kept = [a for a in node.attribute if a.name != "transB"]
        del copy.attribute[:]
        copy.attribute.extend(kept)
        self._nodes.append(copy)

    def activation(self, name: str) -> str:
        """The quantized and dequantized form of a tensor, made once."""
        if name not in self._done:
            self._done.add(name)
            scale, source = self._scales[name], name
            if scale.smooth_d is not None:
                source = f"{name}__even"
                self._constant(f"{name}__divisor", (1 / scale.smooth_d).astype(np.float32))
                self._nodes.append(
                    helper.make_node("Mul", [name, f"{name}__divisor"], [source], name=source)
                )
            self._constant(f"{name}__scale", np.array(scale.step))
            self._constant(f"{name}__zero", np.array(scale.zero))
            self._pair(source, name, with_quantize=True)
        return f"{name}__dq"

    def _weight(
        self, name: str, axis: int, *, flip: bool = False, smooth_d: Floats | None = None
    ) -> str:
        if name not in self._done:
            self._done.add(name)
            value = numpy_helper.to_array(self._constants[name])
            value = value.T if flip else value
            value = value if smooth_d is None else value * smooth_d[:, None]
            rounded, scale = round_weight(value, axis)
            self._constant(f"{name}__q", np.ascontiguousarray(rounded))
            self._constant(f"{name}__scale", scale)
            self._constant(f"{name}__zero", np.zeros(len(scale), np.int8))
            self._pair(name, name, with_quantize=False, axis=axis)
        return f"{name}__dq"

    def _bias(self, name: str, activation: str, weight: str) -> str:
        """The bias in units of the product's own scale, which int32 holds without loss."""
        scale = numpy_helper.to_array(self._new[f"{activation}__scale"]) * numpy_helper.to_array(
            self._new[f"{weight}__scale"]
        )
        rounded = np.rint(numpy_helper.to_array(self._constants[name]) / scale)
        key = f"{name}__by__{weight}"
        self._constant(f"{key}__q", np.clip(rounded, -(2**31), 2**31 - 128).astype(np.int32))
        self._constant(f"{key}__scale", scale.astype(np.float32))
        self._constant(f"{key}__zero", np.zeros(len(scale), np.int32))
        self._pair(key, key, with_quantize=False)
        return f"{key}__dq"

    def _pair(self, source: str, name: str, *, with_quantize: bool, axis: int = 0) -> None:
        by = [f"{name}__scale", f"{name}__zero"]
        if with_quantize:
            self._nodes.append(
                helper.make_node(
                    "QuantizeLinear", [source, *by], [f"{name}__q"], name=f"{name}__quantize"
                )
            )
        options = {} if with_quantize else {"axis": axis}
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{name}__q", *by],
                [f"{name}__dq"],
                name=f"{name}__dequantize",
                **options,
            )
        )

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> None:
        self._new[name] = numpy_helper.from_array(value, name)

    def finish(self) -> onnx.ModelProto:
        """The model, without the float weights that nothing reads any more."""
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._new.values())
        del graph.value_info[:]
        return prepare(self._model)


def _has(node: NodeProto, attribute: str) -> bool:
    return any(a.name == attribute and a.i for a in node.attribute)
