"""Int8 graphs of a bundle: recorded inputs, scales of what products read, graphs that round."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from amlr.export.ladder.qdq import Product, find_products, insert_qdq, residuals
from amlr.export.ladder.scales import Feeds, Scale, fit_products, fit_values, observe
from amlr.export.precision.graph_tools import open_session, prepare
from amlr.export.to_onnx import write_models
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
            yield name, quantized(onnx.load(str(source)), _thinned(name, feeds[name]))

    return write_models(models(), folder)


def fit_scales(
    model: onnx.ModelProto, products: Collection[Product], feeds: Feeds
) -> dict[str, Scale]:
    """Choose how each activation becomes uint8.

    Args:
        model: Float32 graph from `prepare`.
        products: Those that are to be quantized.
        feeds: Inputs of the graph on calibration posts.
    """
    nodes = {node.name: node for node in model.graph.node}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights_of: dict[str, list[npt.NDArray[Any]]] = {}
    for product in products:
        node = nodes[product.node]
        weights = weights_of.setdefault(product.activation, [])
        if node.op_type != "Conv":
            weight = numpy_helper.to_array(constants[product.weight]).astype(np.float32)
            flip = any(a.name == "transB" and a.i for a in node.attribute)
            weights.append(weight.T if flip else weight)
    sums = residuals(model) if any(nodes[p.node].op_type == "Conv" for p in products) else set()
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
        product
        for product in find_products(model)
        if not any(head in product.node for head in HEADS)
    ]
    fit, probe = feeds[:-1] or feeds, feeds[-1]
    scales = fit_scales(model, products, fit)
    kept = {product.node for product in products}
    if any(node.op_type == "Conv" for node in model.graph.node):
        # Transformers spread their error; in a convolutional network one early layer can hold
        # nearly all of it.
        kept = set(_bearable(model, products, scales, probe))
    read = {product.activation for product in products if product.node in kept}
    # Convolutions keep their sums; elsewhere a scale without a reader is of no use.
    used = {name: scale for name, scale in scales.items() if name in read or _is_sum(name, scales)}
    return insert_qdq(model, used, kept)


def _is_sum(name: str, scales: Mapping[str, Scale]) -> bool:
    return name in scales and scales[name].smooth_d is None


def _bearable(
    model: onnx.ModelProto,
    products: Collection[Product],
    scales: Mapping[str, Scale],
    probe: Feed,
) -> list[str]:
    """Products whose own rounding moves the first output by little, relative to its spread."""
    exact = open_session(model).run(None, probe)[0]
    spread = float(exact.std()) or 1.0
    names = []
    for product in products:
        one = insert_qdq(model, {product.activation: scales[product.activation]}, {product.node})
        moved = open_session(one).run(None, probe)[0] - exact
        if float(np.sqrt(np.square(moved).mean())) <= LARGEST_ERROR * spread:
            names.append(product.node)
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
