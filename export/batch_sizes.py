"""A batch size for each bucket of the planner: a stated heuristic, on stated assumptions.

Windows come `AT_ONCE` together, each in a bucket with its share of the traffic, so a bucket
gets a binomial number n of them and runs ceil(n / batch) times. A run computes all its rows, used
or not, and costs at least what `FILL_STEPS` steps cost: below that a device is not full. Each
bucket takes the power of two with the least expected cost, the smaller one where two are equal. If
the graphs exceed the memory cap, the batch is halved that costs least a byte freed.

`FILL_STEPS` is an assumption; no GPU has been measured.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
AT_ONCE = 32
FILL_STEPS = 256


def choose_batches(
    work_g: Sequence[float],
    share_g: Sequence[float],
    row_bytes_g: Sequence[int],
    *,
    fill_work: float,
    most: int,
    at_once: int,
    cap_bytes: float,
) -> tuple[int, ...] | None:
    """Batch size of each bucket.

    Args:
        work_g: Work of one window of each bucket.
        share_g: Share of the traffic in each.
        row_bytes_g: Memory of a captured graph for each window in it.
        fill_work: Least work of a run.
        most: Largest batch.
        at_once: Windows that come together.
        cap_bytes: Most memory of all graphs.

    Returns:
        Batches, or None where even batches of one exceed the cap.

    Example:
        >>> choose_batches(
        ...     [8.0], [1.0], [1], fill_work=64.0, most=16, at_once=8, cap_bytes=99
        ... )
        (8,)
    """
    sizes = [1 << power for power in range(most.bit_length())]
    table_gs = np.array(
        [
            [run_cost(work, share, size, fill_work=fill_work, at_once=at_once) for size in sizes]
            for work, share in zip(work_g, share_g, strict=True)
        ]
    )
    place_g = [int(row.argmin()) for row in table_gs]
    while sum(b << p for b, p in zip(row_bytes_g, place_g, strict=True)) > cap_bytes:
        price = [
            (table_gs[g, p - 1] - table_gs[g, p]) / (row_bytes_g[g] << (p - 1)) if p else math.inf
            for g, p in enumerate(place_g)
        ]
        cheapest = int(np.argmin(price))
        if not place_g[cheapest]:
            return None
        place_g[cheapest] -= 1
    return tuple(sizes[place] for place in place_g)


def run_cost(work: float, share: float, batch: int, *, fill_work: float, at_once: int) -> float:
    """Expected cost of all runs of one bucket, for `at_once` windows of traffic."""
    count = np.arange(at_once + 1)
    ways = np.array([math.comb(at_once, int(n)) for n in count], np.float64)
    chance: Floats = ways * share**count * (1.0 - share) ** (at_once - count)
    runs = float(chance @ -(-count // batch))
    return runs * max(fill_work, batch * work)
