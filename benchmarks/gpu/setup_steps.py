"""Steps that prepare the machine: its ceilings, and the kit's wheels and bundles."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

from amlr.benchmarks.gpu.context import Context, measure
from amlr.benchmarks.gpu.kit import unpack_part
from amlr.benchmarks.gpu.orchestrate import site_folder
from amlr.benchmarks.gpu.rows import Row

PARTS = ("paper", "small")
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "tokenizers", "pillow")


def ceilings(context: Context) -> Iterator[Row]:
    """The card, versions, and what copies and matrix products reach."""
    import torch

    yield {"card": context.card, "machine": platform.machine(), "python": platform.python_version(),
           "versions": {name: _version(name) for name in _PACKAGES}}  # fmt: skip
    if not context.dry:
        query = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        line = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        yield {"card": context.card, "nvidia_smi": line, "cuda": torch.version.cuda}
    count = 1 << (16 if context.dry else 30)
    source = torch.empty(count, dtype=torch.uint8, device=context.device).random_()
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), context.device, None, 10)
    rate = 2 * count / timing["queued_ms"] / 1e9
    yield {"card": context.card, "what": "copy, bytes read and written", "TB_per_s": rate, **timing}
    side = 64 if context.dry else 8192
    left, right = (
        torch.randn(side, side, device=context.device, dtype=torch.float16) for _ in range(2)
    )
    timing = measure(lambda: left @ right, context.device, None, 10)
    rate = 2 * side**3 / timing["queued_ms"] / 1e9
    yield {"card": context.card, "what": f"fp16 matmul {side}", "TFLOP_per_s": rate, **timing}


def install(context: Context) -> Iterator[Row]:
    """Install the wheels beside everything else, and make the bundles from their recipes."""
    wheels = sorted((context.kit / "wheels").glob("*.whl"))
    site = site_folder(context.work)
    start = time.perf_counter()
    if not wheels:
        yield {"what": "wheels", "note": "the kit has none (or they travelled in an earlier call)"}
    elif context.dry:
        yield {"what": "wheels", "note": f"{len(wheels)} in the kit; a dry run installs none"}
    else:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
        subprocess.run([*command, *map(str, wheels)], check=True)
        yield {"what": "wheels", "note": ", ".join(w.name.split("-")[0] for w in wheels),
               "seconds": round(time.perf_counter() - start, 2)}  # fmt: skip
    for name in PARTS:
        if not (context.kit / name).is_dir():
            yield {"what": name, "note": "the kit has no such part"}
            continue
        start = time.perf_counter()
        unpack_part(context.kit / name, context.work / f"{name}.plan")
        yield {"what": name, "note": "made, hashes agree",
               "seconds": round(time.perf_counter() - start, 2)}  # fmt: skip


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
