"""How many cores this process may really use."""

import hashlib
import os
import platform
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path, PurePosixPath

_CPUS = Path("/sys/devices/system/cpu")
_INFO = Path("/proc/cpuinfo")
_PROCESS = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores open to this process, its affinity and its container's quota respected.

    Hyper-threads share one core's arithmetic units, so a second thread there only adds waiting.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS or Windows
        return max(1, (os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min([len(cores), *map(ceil, _quotas())]))


def _siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quotas() -> Iterator[Fraction]:
    """Cores granted by every control group around this process, of either version of cgroups.

    The kernel enforces all of them: that of the process (a systemd unit's CPUQuota), that of its
    container, and those between.
    """
    for folder in _cpu_groups():
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            # "max" in version 2 and -1 in version 1 mean no quota.
            if int(quota) > 0:
                yield Fraction(int(quota), int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue


def _cpu_groups() -> Iterator[Path]:
    """Folders of the control groups around this process, as far as they are visible here."""
    # Where mounts cannot be read, these are the usual places of a container's group.
    yield from (_CGROUPS, _CGROUPS / "cpu", _CGROUPS / "cpu,cpuacct")
    paths: dict[str, str] = {}
    for line in _lines(_PROCESS / "cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(_PROCESS / "mountinfo"):
        about, _, of_type = line.partition(" - ")
        kind, options = of_type.partition(" ")[0], of_type.rpartition(" ")[2].split(",")
        if kind not in paths or (kind == "cgroup" and "cpu" not in options):
            continue
        root, point = about.split()[3:5]
        # A container may see only its part of the tree; then the mount itself is its group.
        group = PurePosixPath(paths[kind])
        inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        if ".." not in inside.parts:
            yield from (Path(point) / part for part in (inside, *inside.parents))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


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
