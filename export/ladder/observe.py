"""Samples of activations on calibration posts: what static scales are made of."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from amlr.runtime.providers.onnxruntime_library import import_onnxruntime

Floats = npt.NDArray[np.float32]
Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
# Enough to see the shape of a distribution, little enough for hundreds of tensors.
ROWS, VALUES = 1024, 60_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What one activation was on the calibration posts.

    Attributes:
        values: Some rows (R, D) of a matrix, or some values (V,) of any other tensor.
        low: Smallest value seen anywhere: per column (D,) of a matrix, else (1,).
        high: Largest.
    """

    values: Floats
    low: Floats
    high: Floats


def observe(model: onnx.ModelProto, tensors: Collection[str], feeds: Feeds) -> dict[str, Sample]:
    """Run a graph and sample activations, graph inputs included; the same feeds, the same samples.

    Args:
        model: Float32 graph.
        tensors: Names of float tensors.
        feeds: Inputs, one dict a run.
    """
    inputs = {value.name for value in model.graph.input}
    computed = sorted(name for name in tensors if name not in inputs)
    session = _session(model, computed)
    parts: dict[str, list[Sample]] = {name: [] for name in tensors}
    for number, feed in enumerate(feeds):
        values = dict(zip(computed, session.run(computed, dict(feed)), strict=True))
        rng = np.random.default_rng(number)
        for name in tensors:
            value = values[name] if name in values else feed[name]
            # Posts without pictures leave nothing in what pictures flow through.
            if value.size:
                parts[name].append(_sample(value, rng))
    return {name: _joined(found) for name, found in parts.items()}


def _sample(value: Floats, rng: np.random.Generator) -> Sample:
    if value.ndim == 2:
        kept = rng.permutation(len(value))[: ROWS // 4]
        return Sample(values=value[kept], low=value.min(axis=0), high=value.max(axis=0))
    flat = value.ravel()
    some = flat[rng.integers(0, flat.size, min(flat.size, VALUES // 8))]
    return Sample(
        values=some, low=flat.min(keepdims=True).copy(), high=flat.max(keepdims=True).copy()
    )


def _joined(parts: Sequence[Sample]) -> Sample:
    values = np.concatenate([part.values for part in parts])
    most = ROWS if values.ndim == 2 else VALUES
    kept = np.random.default_rng(0).permutation(len(values))[:most]
    return Sample(
        values=values[kept],
        low=np.min([part.low for part in parts], axis=0),
        high=np.max([part.high for part in parts], axis=0),
    )


def _session(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    ort = import_onnxruntime()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
