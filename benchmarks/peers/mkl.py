"""A loader stub that lets Intel's MKL use its fast kernels on other makers' processors.

MKL asks `mkl_serv_intel_cpu_true` before it takes its AVX-512 and AVX2 kernels, and answers no on
AMD, which costs half the speed on some of its processors and a tenth on others. The stub answers
yes. It is compiled here, loaded only into the worker process of the peer that shows this
difference, and never shipped or needed elsewhere.
"""

import shutil
import subprocess
from pathlib import Path

from amlr.benchmarks.machine import cpu_vendor

_SOURCE = """
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
"""


def build_preload(folder: Path) -> tuple[str | None, str]:
    """Compile the stub.

    Returns:
        Path of the library and "", or None and the reason.
    """
    vendor = cpu_vendor()
    if vendor == "GenuineIntel":
        return None, "this is an Intel processor: MKL already takes its full-speed path"
    if vendor is None:
        return None, "only for x86 processors under Linux"
    compiler = next((path for name in ("gcc", "g++", "cc") if (path := shutil.which(name))), None)
    if compiler is None:
        return None, "needs a C compiler (gcc or g++) for the loader stub; none is installed"
    library, source = folder / "libmkl_full_speed.so", folder / "mkl_full_speed.c"
    source.write_text(_SOURCE)
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"the loader stub did not compile: {done.stderr.strip().splitlines()[-1]}"
    return str(library), ""
