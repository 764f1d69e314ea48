"""Percentiles, the same rule everywhere: none where there are too few samples."""

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PERCENTS = (50, 95, 99)


def percentile(values: Sequence[float] | npt.NDArray[np.float64], percent: int) -> float | None:
    """Percentile by linear interpolation.

    A percentile q needs 100 / (100 - q) samples, 20 for p95 and 100 for p99; the median needs one.

    Returns:
        None where there are too few samples.
    """
    least = 1 if percent <= 50 else round(100 / (100 - percent))
    return float(np.percentile(values, percent)) if len(values) >= least else None


def median(values: Sequence[float], digits: int = 4) -> float:
    """Median of at least one value, rounded."""
    return round(statistics.median(values), digits)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """`p50_ms`, `p95_ms` and `p99_ms` of durations in seconds."""
    values = {f"p{percent}_ms": percentile(seconds, percent) for percent in PERCENTS}
    return {
        name: None if value is None else round(1000 * value, 2) for name, value in values.items()
    }
