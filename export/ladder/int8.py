"""Int8 graphs of a bundle: recorded inputs, scales of what products read, graphs that round.

Activations are uint8 with one static scale and zero point per tensor, weights int8 with one scale
per output channel: the pair that CPUs multiply at full speed, and whose result depends on no other
post. Everything not chosen stays float32. onnxruntime and OpenVINO both fuse the pattern of
QuantizeLinear and DequantizeLinear around a product.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from amlr.export.ladder.scales import Feeds, Scale, fit_products, fit_values, observe, round_weight
from amlr.export.precision.graph_tools import PRODUCTS, is_flipped, open_session, prepare
from amlr.export.steps import counted
from amlr.export.to_onnx import write_models
from amlr.kernels.arrays import Floats
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.results import Post

# Classifiers: next to no work, and a large part of the error.
HEADS = ("span_head", "token_head")
# A product that alone moves a graph's output by more than this stays float32.
LARGEST_ERROR = 0.04
FEEDS, IMAGES = 4, 4
Feed = dict[str, npt.NDArray[Any]]
log = logging.getLogger(__name__)


def find_products(model: onnx.ModelProto) -> list[NodeProto]:
    """Products of an activation and a constant weight, in order; `model` comes from `prepare`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in PRODUCTS
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

    def keep(self, node: NodeProto, inputs: list[str]) -> NodeProto:
        """Copy a node, reading other tensors."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        self._nodes.append(copy)
        return copy

    def product(self, node: NodeProto) -> None:
        """Write a product with both sides quantized."""
        source = self.activation(node.input[0])
        if node.op_type == "Conv":
            weight = self._weight(node.input[1], axis=0)
        else:
            smooth = self._scales[node.input[0]].smooth_d
            weight = self._weight(node.input[1], axis=1, flip=is_flipped(node), smooth_d=smooth)
        inputs = [source, weight]
        if len(node.input) > 2:
            inputs.append(self._bias(node.input[2], node.input[0], node.input[1]))
        copy = self.keep(node, inputs)
        del copy.attribute[:]
        copy.attribute.extend(a for a in node.attribute if a.name != "transB")

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


class RecordingProvider(OnnxRuntimeProvider):
    """Float32 onnxruntime that keeps what each graph was given.

    Attributes:
        feeds: By graph name, one dict a run.
    """

    def __init__(self, bundle: Bundle, variant: Variant, options: ProviderOptions) -> None:
        super().__init__(bundle, variant, options)
        self.feeds: dict[str, list[Feed]] = {}

    def _run(
        self, graph: str, feed: Feed, options: Any | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        outputs = super()._run(graph, feed, options)
        self.feeds.setdefault(graph, []).append(feed)
        return outputs


def record_feeds(bundle: Bundle, posts: Iterable[Post]) -> Mapping[str, Sequence[Feed]]:
    """Inputs of the graphs that CPUs run, for the posts given.

    Args:
        bundle: Any bundle with a float32 variant.
        posts: Calibration posts; their pictures are what the image graph is calibrated on.
    """
    variant = bundle.manifest.variants["fp32"]
    provider = RecordingProvider(bundle, variant, ProviderOptions())
    with Engine(bundle, provider, variant=variant) as engine:
        engine.tag_batch(posts)
    feeds = dict(provider.feeds)
    if "fusion_closed" in variant.graphs:
        # The same units, pictures or not: the graph without attention needs no posts of its own.
        feeds["fusion_closed"] = feeds.get("fusion_closed", []) + [
            {
                name: array
                for name, array in feed.items()
                if name == "hidden_nd" or name.startswith("rows_")
            }
            for feed in feeds.get("fusion_packed", [])
        ]
    return feeds


def write_int8(
    sources: Mapping[str, Path], feeds: Mapping[str, Sequence[Feed]], folder: Path
) -> dict[str, Path]:
    """Quantize graphs into a folder with one shared weights file.

    Args:
        sources: Float32 file of each graph.
        feeds: Inputs of each graph on calibration posts.
        folder: Made where it is absent.

    Returns:
        File of each graph.
    """

    def models() -> Iterator[tuple[str, onnx.ModelProto]]:
        for name, source in sources.items():
            log.info(f"  quantizing {name}")
            yield name, quantized(onnx.load(str(source)), _thinned(name, feeds[name]))

    return write_models(models(), folder)


def fit_scales(
    model: onnx.ModelProto, products: Collection[NodeProto], feeds: Feeds
) -> dict[str, Scale]:
    """Choose how each activation becomes uint8.

    Args:
        model: Float32 graph from `prepare`.
        products: Those of its nodes that are to be quantized.
        feeds: Inputs of the graph on calibration posts.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights_of: dict[str, list[npt.NDArray[Any]]] = {}
    for node in products:
        weights = weights_of.setdefault(node.input[0], [])
        if node.op_type != "Conv":
            weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
            weights.append(weight.T if is_flipped(node) else weight)
    sums = residuals(model) if any(node.op_type == "Conv" for node in products) else set()
    samples = observe(model, {*weights_of, *sums}, feeds)
    return {
        name: fit_products(sample, weights_of[name])
        if sample.values.ndim == 2 and weights_of.get(name)
        else fit_values(sample)
        for name, sample in samples.items()
    }


def quantized(model: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """Quantize every product of a graph but the heads and those that cannot bear it."""
    model = prepare(model)
    products = [
        node for node in find_products(model) if not any(head in node.name for head in HEADS)
    ]
    fit, probe = feeds[:-1] or feeds, feeds[-1]
    scales = fit_scales(model, products, fit)
    kept = {node.name for node in products}
    if any(node.op_type == "Conv" for node in model.graph.node):
        # Transformers spread their error; in a convolutional network one early layer can hold
        # nearly all of it.
        kept = set(_bearable(model, products, scales, probe))
    read = {node.input[0] for node in products if node.name in kept}
    # Convolutions keep their sums; elsewhere a scale without a reader is of no use.
    used = {name: scale for name, scale in scales.items() if name in read or _is_sum(name, scales)}
    return insert_qdq(model, used, kept)


def _is_sum(name: str, scales: Mapping[str, Scale]) -> bool:
    return name in scales and scales[name].smooth_d is None


def _bearable(
    model: onnx.ModelProto,
    products: Collection[NodeProto],
    scales: Mapping[str, Scale],
    probe: Feed,
) -> list[str]:
    """Products whose own rounding moves the first output by little, relative to its spread."""
    exact = open_session(model).run(None, probe)[0]
    spread = float(exact.std()) or 1.0
    names = []
    for node in counted(products, f"of {len(products)} products tried alone"):
        source = node.input[0]
        one = insert_qdq(model, {source: scales[source]}, {node.name})
        moved = open_session(one).run(None, probe)[0] - exact
        if float(np.sqrt(np.square(moved).mean())) <= LARGEST_ERROR * spread:
            names.append(node.name)
    return names


def _thinned(name: str, feeds: Sequence[Feed]) -> list[Feed]:
    """A few runs spread over all; pictures in small batches, which bounds memory."""
    if name == "image":
        pictures = np.concatenate([feed["pixel_values"] for feed in feeds])
        feeds = [
            {"pixel_values": pictures[i : i + IMAGES]} for i in range(0, len(pictures), IMAGES)
        ]
    if len(feeds) <= FEEDS + 1:
        return list(feeds)
    chosen = np.linspace(0, len(feeds) - 1, FEEDS + 1).round().astype(int)
    return [feeds[i] for i in chosen]
