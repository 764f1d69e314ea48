"""Memory of processes, the environment of workers, and the libraries they load."""

import importlib.metadata
import os
import resource
from pathlib import Path

_PACKAGES = (
    "numpy", "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tokenizers", "pillow",
)  # fmt: skip
_THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
_KIB_PER_MIB = 1024


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries that matter here."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def memory_mib(pid: int | str = "self", *, peak: bool = False) -> float:
    """Resident memory of a process in MiB (Linux); 0 where the process is gone.

    Args:
        pid: The process.
        peak: Largest size so far instead of the present one.
    """
    name = "VmHWM" if peak else "VmRSS"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kib = next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
    return kib / _KIB_PER_MIB


def own_peak_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    # Only where there is no /proc: Linux lets a child inherit its parent's ru_maxrss, and others
    # count it in bytes.
    fallback = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return memory_mib(peak=True) or fallback


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables with which every numeric library uses exactly `threads` threads."""
    return {f"{name}_NUM_THREADS": str(threads) for name in _THREAD_VARIABLES}


def worker_environment(threads: int, preload: str | None = None) -> dict[str, str]:
    """The whole environment of a measured process.

    Args:
        threads: Threads of its numeric libraries.
        preload: Shared library that its loader puts first (LD_PRELOAD).
    """
    environment = os.environ | thread_variables(threads)
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    return environment | ({"LD_PRELOAD": preload} if preload else {})
