"""What the CUDA decoders are compared with: NumPy on one core, pytorch-crf on host and GPU."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from amlr.benchmarks.decoders import TimedChain
from amlr.errors import AmlrError


def host_us(call: Callable[[], object], repeats: int = 3) -> float:
    """Least wall-clock microseconds of a call after one to warm up; ends after about a second."""
    call()
    least = float("inf")
    stop = time.perf_counter() + 1.0
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        least = min(least, end - start)
        if end > stop:
            break
    return round(1e6 * least, 2)


def baseline_rows(
    batches: tuple[int, ...], steps: int, most: int, *, on_gpu: bool
) -> list[dict[str, Any]]:
    """NumPy and pytorch-crf on the linear chains that the kernels decoded.

    Args:
        batches: B of each row.
        steps: T.
        most: Largest B for pytorch-crf.
        on_gpu: Also run pytorch-crf on the GPU.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        chain = TimedChain.draw(batch, steps)
        row = chain.describe("linear_viterbi")
        rows.append(row | {"decoder": "numpy", "numpy_us": host_us(chain.decode)})
        if batch > most:
            continue
        for device in ("cpu", "cuda") if on_gpu else ("cpu",):
            row = chain.describe("linear_viterbi") | {"decoder": f"pytorch-crf, {device}"}
            try:
                rows.append(row | _pytorch_crf(chain, device))
            except (AmlrError, RuntimeError) as error:
                rows.append(row | {"not_run": f"{type(error).__name__}: {error}"})
    return rows


def _pytorch_crf(chain: TimedChain, device: str) -> dict[str, Any]:
    # The paths come back as lists, so a call ends with the device's work done.
    decode = chain.pytorch_crf(device)
    same = bool(np.array_equal(np.array(decode()), chain.decode()[0]))
    return {"crf_us": host_us(decode, repeats=2), "equal": same}
