"""The machine that figures are of."""

import os
import platform

from amlr.benchmarks.process import package_versions
from amlr.benchmarks.report.records import MachineRecord
from amlr.runtime.cpu import cpu_fields

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine() -> MachineRecord:
    """Processor, cores, memory, system and library versions; unknown values are None."""
    fields = cpu_fields()
    flags = fields.get("flags", "").split()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    memory_gb = None
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        memory_gb = round(pages * size / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    return MachineRecord(
        cpu=fields.get("model name") or platform.processor() or None,
        vendor=fields.get("vendor_id"),
        family=fields.get("cpu family"),
        features=[flag for flag in _FLAGS if flag in flags],
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        memory_gb=memory_gb,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=package_versions(),
        load_before=None if load is None else round(load, 2),
    )
