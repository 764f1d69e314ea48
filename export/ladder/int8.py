"""Int8 graphs of a bundle, written beside its float32 ones."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from amlr.export.ladder.calibration import Feed
from amlr.export.ladder.fit import fit_scales
from amlr.export.ladder.qdq import Product, find_products, insert_qdq
from amlr.export.ladder.scales import Scale
from amlr.export.precision.emulate import open_session
from amlr.export.precision.graph_tools import prepare
from amlr.export.to_onnx import WEIGHTS_FILE, SharedWeights

# Classifiers: next to no work, and a large part of the error.
HEADS = ("span_head", "token_head")
# A product that alone moves a graph's output by more than this stays float32.
LARGEST_ERROR = 0.04
FEEDS, IMAGES = 4, 4


def write_int8(
    sources: Mapping[str, Path],
    feeds: Mapping[str, Sequence[Feed]],
    folder: Path,
) -> dict[str, Path]:
    """Quantize graphs into a folder with one shared weights file.

    Args:
        sources: Float32 file of each graph.
        feeds: Inputs of each graph on calibration posts.
        folder: Must exist.

    Returns:
        File of each graph.
    """
    weights = SharedWeights(folder / WEIGHTS_FILE)
    files: dict[str, Path] = {}
    try:
        for name, source in sources.items():
            model = quantized(onnx.load(str(source)), _thinned(name, feeds[name]))
            weights.externalise(model)
            files[name] = folder / f"{name}.onnx"
            files[name].write_bytes(model.SerializeToString(deterministic=True))
    finally:
        weights.close()
    for file in files.values():
        onnx.checker.check_model(str(file))
    return files


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
