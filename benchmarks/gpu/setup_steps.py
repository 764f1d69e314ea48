"""Steps that prepare the machine: its ceilings, and the kit's wheels and bundles."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator

from amlr.benchmarks.gpu.context import Context, measure
from amlr.benchmarks.gpu.kit import is_unpacked, unpack_part
from amlr.benchmarks.gpu.run import Row, site_folder
from amlr.benchmarks.process import package_versions

PARTS = ("paper", "small")


def ceilings(context: Context) -> Iterator[Row]:
    """The card, versions, and what copies and matrix products reach."""
    import torch

    yield {"card": context.card, "machine": platform.machine(), "python": platform.python_version(),
           "versions": package_versions()}  # fmt: skip
    if not context.dry:
        query = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        line = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        yield {"card": context.card, "nvidia_smi": line, "cuda": torch.version.cuda}
    count = 1 << (16 if context.dry else 30)
    source = torch.empty(count, dtype=torch.uint8, device=context.device).random_()
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), context.device, 10)
    rate = 2 * count / timing["queued_ms"] / 1e9
    yield {"card": context.card, "what": "copy, bytes read and written", "TB_per_s": rate, **timing}
    side = 64 if context.dry else 8192
    left, right = (
        torch.randn(side, side, device=context.device, dtype=torch.float16) for _ in range(2)
    )
    timing = measure(lambda: left @ right, context.device, 10)
    rate = 2 * side**3 / timing["queued_ms"] / 1e9
    yield {"card": context.card, "what": f"fp16 matmul {side}", "TFLOP_per_s": rate, **timing}


def install(context: Context) -> Iterator[Row]:
    """Install the wheels beside everything else, and unpack the bundles."""
    yield _install_wheels(context)
    for name in PARTS:
        part, plan = context.kit / name, context.work / f"{name}.plan"
        start = time.perf_counter()
        if not part.is_dir():
            note = "the kit has no such part"
        elif is_unpacked(part, plan):
            note = "unpacked before"
        else:
            unpack_part(part, plan)
            note = "unpacked"
        yield {"what": name, "note": note, "seconds": round(time.perf_counter() - start, 2)}


def _install_wheels(context: Context) -> Row:
    wheels = sorted((context.kit / "wheels").glob("*.whl"))
    names = ", ".join("-".join(wheel.name.split("-")[:2]) for wheel in wheels)
    site, start = site_folder(context.work), time.perf_counter()
    stamp = site / "amlr-kit.txt"
    if not wheels:
        note = "the kit has none (or they travelled in an earlier call)"
    elif context.dry:
        note = f"a dry run installs none of {names}"
    elif stamp.is_file() and stamp.read_text(encoding="utf-8") == names:
        note = f"installed before: {names}"
    else:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
        subprocess.run([*command, *map(str, wheels)], check=True)
        stamp.write_text(names, encoding="utf-8")
        note = names
    return {"what": "wheels", "note": note, "seconds": round(time.perf_counter() - start, 2)}
