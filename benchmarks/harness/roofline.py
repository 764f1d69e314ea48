"""Speed of this machine's matrix products, and the arithmetic that answers need.

`python -m amlr.benchmarks.harness.roofline THREADS SECONDS` prints the first as JSON.

The best product any installed library reaches is taken as the roof; how far the engine stays below
it says what is left to gain without fewer operations or fewer bits.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from amlr.benchmarks.harness.process import worker_environment
from amlr.benchmarks.report.records import RooflineRecord
from amlr.benchmarks.systems.base import RESEARCH_STEPS, ModelInput, padded_text
from amlr.runtime.manifest import Manifest

if TYPE_CHECKING:  # the process that measures products must not load the model's library first
    from torch import Tensor

    from amlr.training.model import AmlrModel

# Rows x inner x outer: batched text layers, picture layers.
SHAPES = ((512, 768, 768), (1024, 768, 3072), (256, 3072, 768))


def _best_gflops(run: Callable[[], Any], operations: float, seconds: float, threads: int) -> float:
    # One thread's processor time is blind to what else runs on the machine.
    clock = time.process_time if threads == 1 else time.perf_counter
    run()
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        begin = clock()
        run()
        best = min(best, clock() - begin)
    return operations / best / 1e9


def _numpy(m: int, k: int, n: int) -> Callable[[], Any]:
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    return lambda: a @ b


def _torch(m: int, k: int, n: int, kind: str) -> Callable[[], Any]:
    import torch

    a = torch.ones(m, k, dtype=getattr(torch, kind))
    b = torch.ones(n, k, dtype=getattr(torch, kind))
    return lambda: torch.nn.functional.linear(a, b)


def _onnxruntime(m: int, k: int, n: int, threads: int) -> Callable[[], Any]:
    import onnx
    import onnxruntime

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((k, n), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", kind, [m, k])],
        [helper.make_tensor_value_info("y", kind, [m, n])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"a": np.ones((m, k), np.float32)}
    return lambda: session.run(None, feed)


def measure_products(threads: int, seconds: float) -> dict[str, float | None]:
    """GFLOP/s of each library, the best over shapes; None where it cannot run."""
    makers: dict[str, Callable[[int, int, int], Callable[[], Any]]] = {
        "numpy-fp32": _numpy,
        "torch-fp32": lambda m, k, n: _torch(m, k, n, "float32"),
        "onnxruntime-fp32": lambda m, k, n: _onnxruntime(m, k, n, threads),
        "torch-bf16": lambda m, k, n: _torch(m, k, n, "bfloat16"),
    }
    results: dict[str, float | None] = {}
    for name, make in makers.items():
        try:
            share = seconds / len(makers) / len(SHAPES)
            results[name] = round(
                max(
                    _best_gflops(make(m, k, n), 2.0 * m * k * n, share, threads)
                    for m, k, n in SHAPES
                ),
                1,
            )
        # A library that is absent or broken only leaves a gap in the table.
        except Exception:
            results[name] = None
    return results


def measure_roof(threads: int, seconds: float) -> dict[str, float | None]:
    """Run `measure_products` in a process with exactly `threads` threads; empty on failure."""
    done = subprocess.run(
        [sys.executable, "-m", "amlr.benchmarks.harness.roofline", str(threads), str(seconds)],
        env=worker_environment(threads),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        return {}
    results: dict[str, float | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


def summarize(
    products: dict[str, float | None], flops: dict[str, float], threads: int
) -> RooflineRecord:
    """Roof, operations of a post, and the times below which float32 cannot go."""
    fp32 = [v for name, v in products.items() if v and name.endswith("fp32")]
    peak = max(fp32, default=None)
    cold = flops["text"] + flops["image"] + flops["fusion"]
    work = {
        "cold": cold,
        "hit": flops["text"] + flops["fusion"],
        "research": flops["research_text"] + flops["image"] + flops["research_fusion"],
    }
    return RooflineRecord(
        threads=threads,
        gflops=products,
        peak_fp32_gflops=peak,
        mflop_per_post={name: round(value / 1e6, 1) for name, value in {**flops, **work}.items()},
        bound_ms_per_post={
            name: None if peak is None else round(value / peak / 1e6, 3)
            for name, value in work.items()
        },
    )


def _count(function: Callable[[], Any]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function()
    return float(counter.get_total_flops())


def flops_per_post(
    model: "AmlrModel", inputs: Sequence[ModelInput], manifest: Manifest
) -> dict[str, float]:
    """Floating-point operations (a multiply-add is two) of one post, averaged.

    Returns:
        `text` and `fusion` at exact lengths with only the word-aligned units, `image` once,
        `research_text` and `research_fusion` padded to the paper's length with all units.
    """
    import torch

    image_size = manifest.image.size
    pixels = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        regions = model.image(pixels)
    totals = {"image": _count(lambda: model.image(pixels)) * len(inputs)}
    for item in inputs:
        own = _tensors(item, manifest, 0)
        padded = _tensors(item, manifest, RESEARCH_STEPS)
        parts = {
            "text": _count(lambda own=own: model.text(**own)),  # type: ignore[misc]
            "fusion": _count(lambda own=own, item=item: _needed(model, own, item, regions)),  # type: ignore[misc]
            "research_text": _count(lambda padded=padded: model.text(**padded)),  # type: ignore[misc]
            "research_fusion": _count(lambda padded=padded: _all(model, padded, regions)),  # type: ignore[misc]
        }
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: value / len(inputs) for name, value in totals.items()}


def _tensors(item: ModelInput, manifest: Manifest, steps: int) -> "dict[str, Tensor]":
    import torch

    feed = padded_text([item], manifest, steps=steps)
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def _hidden(model: "AmlrModel", feed: "dict[str, Tensor]") -> "Tensor":
    import torch

    return torch.zeros(*feed["input_ids"].shape, model.config.width)


def _needed(
    model: "AmlrModel", feed: "dict[str, Tensor]", item: ModelInput, regions: "Tensor"
) -> None:
    import torch

    hidden = _hidden(model, feed)[0]
    rows = []
    for scale in range(1, model.config.scales + 1):
        starts = item.units.start_step_u[item.units.scale_u == scale].astype(np.int64)
        rows.append(torch.from_numpy(starts[:, None] + np.arange(scale)))
    units = model.units.select(hidden, rows)[None]
    model.classify(units, model.cross.attend(units, regions))
    model.token_head(hidden)


def _all(model: "AmlrModel", feed: "dict[str, Tensor]", regions: "Tensor") -> None:
    hidden = _hidden(model, feed)
    units = model.units(hidden)
    model.classify(units, model.cross.attend(units, regions))
    model.token_head(hidden)


if __name__ == "__main__":
    print(json.dumps(measure_products(int(sys.argv[1]), float(sys.argv[2]))))
