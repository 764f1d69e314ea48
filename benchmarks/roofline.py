"""Speed of this machine's matrix products: `python -m amlr.benchmarks.roofline THREADS SECONDS`.

The best product any installed library reaches is taken as the roof; how far the engine stays below
it says what is left to gain without fewer operations or fewer bits.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from amlr.benchmarks.remote import worker_environment

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
        [sys.executable, "-m", "amlr.benchmarks.roofline", str(threads), str(seconds)],
        env=worker_environment(threads, None),
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
) -> dict[str, Any]:
    """Roof, operations of a post, and the times below which float32 cannot go.

    Args:
        products: From `measure_roof`.
        flops: From `flops_per_post`.
        threads: Threads of both.
    """
    fp32 = [v for name, v in products.items() if v and name.endswith("fp32")]
    peak = max(fp32, default=None)
    cold = flops["text"] + flops["image"] + flops["fusion"]
    work = {
        "cold": cold,
        "hit": flops["text"] + flops["fusion"],
        "research": flops["research_text"] + flops["image"] + flops["research_fusion"],
    }
    return {
        "threads": threads,
        "gflops": products,
        "peak_fp32_gflops": peak,
        "mflop_per_post": {
            name: round(value / 1e6, 1) for name, value in {**flops, **work}.items()
        },
        "bound_ms_per_post": {
            name: None if peak is None else round(value / peak / 1e6, 3)
            for name, value in work.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure_products(int(sys.argv[1]), float(sys.argv[2]))))
