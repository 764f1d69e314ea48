"""How many cores this process may really use."""

import hashlib
import os
import platform
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_INFO = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores open to this process, its affinity and its container's quota respected.

    Hyper-threads share one core's arithmetic units, so a second thread there only adds waiting.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS or Windows
        return max(1, (os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota_cores(len(cores))))


def _siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota_cores(default: int) -> int:
    try:
        quota, period = _QUOTA.read_text().split()
        return default if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return default


def cpu_fields() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is no such file."""
    try:
        lines = _INFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return {}
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in values.items()}


def cpu_model() -> str:
    """Name of the CPU and a hash of its instruction sets: what measured speed depends on."""
    fields = cpu_fields()
    if not fields:
        return f"{platform.machine()} {platform.processor()}"
    flags = fields.get("flags") or fields.get("Features", "")
    model = fields.get("model name") or platform.machine()
    return f"{model} {hashlib.sha256(flags.encode()).hexdigest()[:16]}"
