"""Static scales from samples: where to clip, and how to share range between the channels.

A few channels of a transformer are ten times as large as the others and would leave those five of
256 levels. Dividing channel j by s_j and multiplying row j of the weight by it changes nothing in
exact arithmetic and evens the channels out (SmoothQuant, Xiao et al., 2023). Both choices are
searched on the products' own outputs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from amlr.export.precision.graph_tools import open_session
from amlr.kernels.arrays import Floats

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]
# Enough to see the shape of a distribution, little enough for hundreds of tensors.
ROWS, VALUES = 1024, 60_000
LEVELS = 255
_ROWS, _OUTPUTS = 384, 256
_SHRINK = (1.0, 0.9, 0.8, 0.7, 0.55, 0.4)
_POWERS = (0.0, 0.3, 0.45, 0.6, 0.75)


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
    # Sorted: random rows are drawn in turn, and a set has another order in every process.
    names = sorted(tensors)
    computed = [name for name in names if name not in inputs]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in computed
    )
    session = open_session(watched, threads=0, is_optimised=True)
    parts: dict[str, list[Sample]] = {name: [] for name in names}
    for number, feed in enumerate(feeds):
        values = dict(zip(computed, session.run(computed, dict(feed)), strict=True))
        rng = np.random.default_rng(number)
        for name in names:
            value = values[name] if name in values else feed[name]
            # Posts without pictures leave nothing in what pictures flow through.
            if value.size:
                parts[name].append(_sample(value, rng))
    return {name: _joined(samples) for name, samples in parts.items()}


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """How one activation becomes uint8.

    Attributes:
        low: Smallest value to represent, after division by `smooth_d`; at most 0.
        high: Largest; at least 0.
        smooth_d: Divisor of each channel, shape (D,), or None for none.
    """

    low: float
    high: float
    smooth_d: Floats | None = None

    @property
    def step(self) -> np.float32:
        """Value of one level."""
        return np.float32(max(self.high - self.low, 1e-8) / LEVELS)

    @property
    def zero(self) -> np.uint8:
        """Level of the value 0, which is always exact."""
        return np.uint8(np.clip(round(-self.low / float(self.step)), 0, LEVELS))

    def round(self, values: Floats) -> Floats:
        """Values after their way through uint8, `smooth_d` apart."""
        levels = np.clip(np.rint(values / self.step) + self.zero, 0, LEVELS)
        rounded: Floats = ((levels - self.zero) * self.step).astype(np.float32)
        return rounded


def round_weight(weight: Floats, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric int8 weight and its scale per channel of `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.maximum(np.abs(weight).max(axis=others), 1e-12) / 127).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    rounded = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return rounded, scale


def fit_values(sample: Sample) -> Scale:
    """Scale with the smallest mean squared error of rounding and clipping."""
    low, high = min(float(sample.low.min()), 0.0), max(float(sample.high.max()), 0.0)
    candidates = [Scale(low=low * shrink, high=high * shrink) for shrink in _SHRINK]

    def error(scale: Scale) -> float:
        return float(np.square(scale.round(sample.values) - sample.values).mean())

    return min(candidates, key=error)


def fit_products(sample: Sample, weights: Sequence[Floats]) -> Scale:
    """Scale and smoothing with the smallest error of x @ w, summed over all weights x meets.

    Args:
        sample: Rows of x.
        weights: Each (D, outputs).
    """
    rows = sample.values[:_ROWS]
    together = np.concatenate(weights, axis=1)
    # Some outputs tell as much as all of them; the largest weight of each row still counts.
    largest_w = np.maximum(np.abs(together).max(axis=1), 1e-5)
    together = together[:, :: max(1, together.shape[1] // _OUTPUTS)]
    exact = rows @ together
    largest_x = np.maximum(np.maximum(-sample.low, sample.high), 1e-5)
    best, best_error = Scale(low=0.0, high=0.0), np.inf
    for power in _POWERS:
        smooth = None
        divisor = np.ones_like(largest_x)
        if power:
            divisor = (largest_x**power / largest_w ** (1 - power)).astype(np.float32)
            divisor /= np.exp(np.log(divisor).mean())
            smooth = divisor
        rounded, step = round_weight(together * divisor[:, None], axis=1)
        weight = rounded * step
        low = min(float((sample.low / divisor).min()), 0.0)
        high = max(float((sample.high / divisor).max()), 0.0)
        for shrink in _SHRINK:
            scale = Scale(low=low * shrink, high=high * shrink, smooth_d=smooth)
            error = float(
                np.square(scale.round((rows / divisor).astype(np.float32)) @ weight - exact).mean()
            )
            if error < best_error:
                best, best_error = scale, error
    return best
