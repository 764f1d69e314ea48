"""Scales of all activations that the products of a graph read."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from amlr.export.ladder.observe import Feeds, observe
from amlr.export.ladder.qdq import Product, residuals
from amlr.export.ladder.scales import Scale, fit_products, fit_values


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
    met: dict[str, list[npt.NDArray[Any]]] = {}
    for product in products:
        node = nodes[product.node]
        weights = met.setdefault(product.activation, [])
        if node.op_type != "Conv":
            weight = numpy_helper.to_array(constants[product.weight]).astype(np.float32)
            flip = any(a.name == "transB" and a.i for a in node.attribute)
            weights.append(weight.T if flip else weight)
    sums = residuals(model) if any(nodes[p.node].op_type == "Conv" for p in products) else set()
    samples = observe(model, {*met, *sums}, feeds)
    return {
        name: fit_products(sample, met[name])
        if sample.values.ndim == 2 and met.get(name)
        else fit_values(sample)
        for name, sample in samples.items()
    }
