"""Device times of our decoders, beside their memory floor, pytorch-crf and NumPy.

A decoder takes microseconds, so many launches are captured in one CUDA graph and events around its
replays are divided by their number: the time a decoder adds behind an engine in a captured graph.
Inputs are those an engine has just written, so they lie in the L2 cache, as they do here. Every
result is compared with NumPy's.

Shape letters: B sequences, T steps, Y tags.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from amlr.benchmarks.decoders import TAGS, TimedChain
from amlr.benchmarks.gpu.kernel_clock import DeviceClock, Sizes, host_us, memory_floor
from amlr.benchmarks.gpu.kernel_unit_times import UNIT_TAGS, unit_rows
from amlr.errors import AmlrError
from amlr.kernels.device import open_device
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import LinearKernels

Rows = list[dict[str, Any]]
# What the host libraries of a dry run must hold.
TIMED_SPECS = (
    KernelSpec(source="linear_viterbi", tags=len(TAGS)),
    KernelSpec(source="linear_confidence", tags=len(TAGS)),
    KernelSpec(source="unit_scores", tags=UNIT_TAGS),
    KernelSpec(source="segmental_viterbi", tags=UNIT_TAGS),
    KernelSpec(source="segmental_confidence", tags=UNIT_TAGS),
)
_SMOKE = Sizes(batches=(1, 528), posts=(32,), launches=5, replays=3, warm_s=0.0, baselines=1)
_DRY = Sizes(
    batches=(1, 3),
    steps=11,
    posts=(2,),
    units=12,
    launches=2,
    replays=2,
    warm_s=0.0,
    baselines=3,
)


def kernel_times(*, smoke: bool, dry: bool) -> Rows:
    """Times of every decoder and of what it is compared with, in microseconds."""
    sizes = _DRY if dry else _SMOKE if smoke else Sizes()
    device = open_device()
    rows: Rows = []
    try:
        clock = DeviceClock(device, sizes)
        library = KernelLibrary(device)
        with device.current():
            rows += _linear_rows(clock, library, sizes)
            for posts in sizes.posts:
                rows += unit_rows(clock, library, posts, sizes.units)
            clock.close()
    except AmlrError as error:  # what was timed before is worth keeping
        rows.append({"not_run": str(error)})
    finally:
        device.close()
    for row in rows:
        row["device"] = device.name
    rows += _baseline_rows(sizes, on_gpu=not dry)
    return rows


def _linear_rows(clock: DeviceClock, library: KernelLibrary, sizes: Sizes) -> Rows:
    kernels = LinearKernels(library, tags=len(TAGS))
    # The least a launch takes: one warp that only writes padding.
    nothing = replace(TimedChain.draw(1, sizes.steps), lengths_b=np.zeros(1, np.int64))
    rows = [_linear_row(clock, kernels, nothing) | {"kernel": "launch floor"}]
    for batch in sizes.batches:
        chain = TimedChain.draw(batch, sizes.steps)
        rows.append(_linear_row(clock, kernels, chain))
        rows.append(_confidence_row(clock, kernels, chain))
    return rows


def _linear_row(clock: DeviceClock, kernels: LinearKernels, chain: TimedChain) -> dict[str, Any]:
    batch, steps = chain.emissions_bty.shape[:2]
    tags, scores = np.empty((batch, steps), np.int32), np.empty(batch, np.float32)
    with clock.work() as work:
        chains = work.chains(chain.checked())
        tags_at, scores_at = work.room(tags), work.room(scores)
        work.stream.synchronize()
        row = clock.time(
            [lambda: kernels.decode(clock.stream, chains, tags=tags_at, scores=scores_at)]
        )
        work.fetch((tags, tags_at), (scores, scores_at))
    expected = chain.decode()
    nbytes = chain.emissions_bty.nbytes + tags.nbytes + 8 * batch
    return {
        **chain.describe("linear_viterbi"),
        **row,
        **memory_floor(nbytes),
        "equal": np.array_equal(tags, expected[0]) and np.array_equal(scores, expected[1]),
    }


def _confidence_row(
    clock: DeviceClock, kernels: LinearKernels, chain: TimedChain
) -> dict[str, Any]:
    batch, steps = chain.emissions_bty.shape[:2]
    path = chain.decode()[0]
    table = np.empty((4, batch, steps), np.float32)
    total = np.empty(batch, np.float32)
    with clock.work() as work:
        chains = work.chains(chain.checked())
        path_at, total_at = work.put(path), work.room(total)
        at = [work.room(part) for part in table]
        work.stream.synchronize()
        row = clock.time(
            [
                lambda: kernels.confidence(
                    clock.stream,
                    chains,
                    tags=path_at,
                    forward=at[0],
                    link=at[1],
                    backward=at[2],
                    confidence=at[3],
                    log_total=total_at,
                )
            ]
        )
        work.fetch((table[3], at[3]))
    expected = chain.confidence(path)
    return {
        **chain.describe("linear_confidence"),
        **row,
        **memory_floor(chain.emissions_bty.nbytes + path.nbytes + table.nbytes + 8 * batch),
        "max_abs_error": float(np.abs(table[3] - expected).max(initial=0)),
    }


def _baseline_rows(sizes: Sizes, *, on_gpu: bool) -> Rows:
    """NumPy and pytorch-crf, on the CPU and the GPU, on the linear chains that kernels decoded."""
    rows: Rows = []
    for batch in sizes.batches:
        chain = TimedChain.draw(batch, sizes.steps)
        row = chain.describe("linear_viterbi")
        rows.append(row | {"decoder": "numpy", "numpy_us": host_us(chain.decode)})
        if batch > sizes.baselines:
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
