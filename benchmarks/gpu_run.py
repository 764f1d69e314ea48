"""The steps of a GPU run; each that cannot run leaves its reason and the others go on."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amlr.benchmarks.data import load_data
from amlr.benchmarks.gpu_tiers import GpuTier, gpu_tiers, percentile_row
from amlr.benchmarks.machine import describe_machine
from amlr.errors import AmlrError
from amlr.export.parity import compare
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post

BATCHES = (1, 8, 32)
TARGETS = ("tensorrt", "tensorrt-rtx")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """What a run does; see the command's options."""

    engine: Path
    out: Path
    data: str = "sample"
    images: Path | None = None
    posts: int = 200
    seconds: float = 3.0
    tests: bool = True


def run_gpu(
    plan: GpuPlan,
    driver: Any,
    *,
    say: Say = lambda line: None,
    tiers: Callable[[Path], Sequence[GpuTier]] = gpu_tiers,
) -> dict[str, Any]:
    """Run every step.

    Args:
        plan: What to do.
        driver: From `probe_driver`.
        say: Receives a line per step.
        tiers: What to compare on a bundle.

    Returns:
        The report: machine, builds, kernels, tests, tiers, and `failed`, names of failed checks.
    """
    report: dict[str, Any] = {
        "schema": 1,
        "machine": describe_machine(),
        "driver": asdict(driver),
        "device": _attempt("device", _device, say),
        "kernels": _attempt("CUDA decoders", _kernels, say),
        "tests": _attempt("kernel tests", _tests, say) if plan.tests else {"skipped": "--no-tests"},
        "builds": [],
        "tiers": [],
        "failed": [],
    }
    bundle = plan.engine
    for target in TARGETS:
        step = partial(_build, bundle, plan.out, target)
        result = _attempt(f"building {target}", step, say)
        report["builds"].append({"target": target, **result})
        bundle = Path(result["bundle"]) if "bundle" in result else bundle
    posts = [item.post for item in load_data(plan.data, plan.images, plan.posts, plan.posts).posts]
    for tier in tiers(bundle):
        row = _attempt(tier.name, partial(_measure, tier, bundle, posts, plan.seconds), say)
        report["tiers"].append({"name": tier.name, **row})
        if tier.must_match and row.get("changed_entities", 0):
            report["failed"].append(tier.name)
    if report["tests"].get("exit_code", 0):
        report["failed"].append("kernel tests")
    if not report["kernels"].get("equal", True):
        report["failed"].append("CUDA decoders")
    return report


def _attempt(name: str, step: Callable[[], dict[str, Any]], say: Say) -> dict[str, Any]:
    say(name)
    start = time.perf_counter()
    try:
        result = step()
    except Exception as error:  # a step of one library must not end the report of the others
        reason = str(error) if isinstance(error, AmlrError) else f"{type(error).__name__}: {error}"
        say(f"  not run: {reason.splitlines()[0] if reason else type(error).__name__}")
        return {"not_run": reason}
    return result | {"step_s": round(time.perf_counter() - start, 3)}


def _device() -> dict[str, Any]:
    from amlr.kernels.device import open_device
    from amlr.runtime.device.preflight import free_device_bytes

    device = open_device()
    try:
        with device.current():
            free = free_device_bytes(device)
    finally:
        device.close()
    return {"name": device.name, "sm": device.sm, "binding": device.binding, "free_mb": free / 1e6}


def _kernels() -> dict[str, Any]:
    """The linear-chain decoder, compiled by NVRTC on the spot, against NumPy."""
    from amlr.kernels import viterbi_decode

    rng = np.random.default_rng(0)
    batch, steps, tags = 256, 64, 9
    emissions = rng.integers(-9, 9, (batch, steps, tags)).astype(np.float32)
    lengths = rng.integers(1, steps + 1, batch)
    chain: dict[str, Any] = {
        "start_y": rng.integers(-9, 9, tags).astype(np.float32),
        "transitions_yy": rng.integers(-9, 9, (tags, tags)).astype(np.float32),
        "end_y": rng.integers(-9, 9, tags).astype(np.float32),
    }
    expected = viterbi_decode(emissions, lengths, **chain)

    def run() -> Any:
        return viterbi_decode(emissions, lengths, **chain, backend="cuda")

    found = run()
    equal = all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    return {"equal": equal, "batch": batch, **percentile_row(run, 1.0)}


def _tests() -> dict[str, Any]:
    root = Path(__file__).resolve().parent.parent
    if not (root / "tests").is_dir():
        raise AmlrError("the tests folder is not here; run from a checkout")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    # 5: no test is marked gpu, which is no failure.
    code = 0 if run.returncode == 5 else run.returncode
    return {"exit_code": code, "last_lines": run.stdout.splitlines()[-5:]}


def _build(bundle: Path, out: Path, target: str) -> dict[str, Any]:
    """Add engines for this device to a copy of the bundle."""
    from amlr.export.extend import TargetOptions, extend_bundle
    from amlr.export.tensorrt.builder import BuildOptions
    from amlr.kernels.device import open_device
    from amlr.runtime.engine_record import EngineRecord

    device = open_device()
    device.close()
    build = BuildOptions(sms=(device.sm,), timing_cache=out / "timing.cache")
    options = TargetOptions(targets=(target,), precisions=("fp32", "fp16"), build=build)
    made = out / f"{target}.plan"
    manifest = extend_bundle(bundle, made, options)
    rows = [
        {"precision": record.precision, "graph": name, "bytes": e.bytes, "build_s": e.build_s}
        for record in map(EngineRecord.from_dict, manifest.engines)
        if record.library == target
        for name, e in record.graphs.items()
    ]
    return {"bundle": str(made), "engines": rows}


def _measure(tier: GpuTier, bundle: Path, posts: Sequence[Post], seconds: float) -> dict[str, Any]:
    """Cold start, parity against onnxruntime on the CPU, latency and memory of one tier."""
    before = _free_mb()
    start = time.perf_counter()
    with tier.open() as engine:
        loaded = time.perf_counter()
        engine.tag_batch(posts[:1])
        first = time.perf_counter()
        with Engine.load(bundle, provider="onnxruntime-cpu", precision="exact") as exact:
            parity = compare(exact, engine, posts)
        rows = [
            {
                "batch": batch,
                "pictures": seen,
                **_timed(engine, posts, batch, seen, seconds),
            }
            for batch in BATCHES
            for seen in (False, True)
        ]
        after = _free_mb()
        return {
            "provider": engine.provider,
            "precision": engine.precision,
            "load_s": loaded - start,
            "first_tag_ms": (first - loaded) * 1e3,
            "posts": parity.posts,
            "entities": parity.entities,
            "changed_entities": parity.changed_entities,
            "max_abs_error": dict(parity.max_abs_error),
            "memory_mb": None if before is None or after is None else before - after,
            "latency": rows,
        }


def _timed(
    engine: Engine, posts: Sequence[Post], batch: int, pictures: bool, seconds: float
) -> dict[str, Any]:
    """Percentiles of calls of `batch` posts; pictures come from the cache after the first call."""
    chosen = [posts[i % len(posts)] for i in range(batch)]
    call = [Post(p.text, p.image if pictures else None, p.words) for p in chosen]
    row = percentile_row(lambda: engine.tag_batch(call), seconds)
    return row | {"posts_per_s": batch / row["p50_ms"] * 1e3}


def _free_mb() -> float | None:
    """Free device memory, or None where no device can be asked."""
    from amlr.kernels.device import open_device
    from amlr.runtime.device.preflight import free_device_bytes

    try:
        device = open_device()
    except AmlrError:
        return None
    try:
        with device.current():
            return free_device_bytes(device) / 1e6
    finally:
        device.close()
