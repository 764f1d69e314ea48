"""Compiled CUDA kernels: what there is to compile, under which name, and where to find it again.

A bundle's `kernels/` folder holds `<name>-y<Y>-sm<NN>-<hash8>.cubin`, one file per source, tag
count and architecture, and `<name>-y<Y>-compute<NN>-<hash8>.ptx`, which a driver can still compile
for a GPU that came later. The hash covers source, options and compiler, so an image of an older
source is never loaded.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from amlr.errors import InputError, ShapeError
from amlr.kernels.nvrtc import Nvrtc, load_nvrtc

# Source file -> the kernels in it.
SOURCES = {
    "linear_viterbi": ("linear_viterbi",),
    "linear_confidence": ("linear_confidence",),
    "unit_scores": ("joint_scores", "joint_box_scores"),
    "segmental_viterbi": ("segmental_viterbi", "segmental_certify"),
    "segmental_confidence": ("segmental_confidence",),
}
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# PTX for the oldest architecture runs on every newer one.
PTX_ARCHITECTURE = 75
MAX_TAGS = 32
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One source with its compile-time choices.

    Attributes:
        source: A key of `SOURCES`.
        tags: Y, columns of the emissions, 1..32.

    Raises:
        InputError: No such source.
        ShapeError: More tags than lanes of a warp, or none.
    """

    source: str
    tags: int

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise InputError(f"no kernel source {self.source!r}; use one of {', '.join(SOURCES)}")
        if not 1 <= self.tags <= MAX_TAGS:
            raise ShapeError(
                f"the CUDA decoders take 1..{MAX_TAGS} tags, one per lane of a warp, got "
                f'{self.tags}; use backend="numpy"'
            )

    @property
    def text(self) -> str:
        """The CUDA C++ source, its headers in place."""
        return _read_source(f"{self.source}.cu")

    @property
    def macros(self) -> dict[str, str]:
        """Preprocessor macros that fix the compile-time choices."""
        return {"TAGS": str(self.tags), "VARIANT": self.function("")}

    def function(self, kernel: str) -> str:
        """Name of a kernel inside the compiled image; a profiler shows it."""
        return f"{kernel}_y{self.tags}"

    def options(self, architecture: str) -> list[str]:
        """Compiler options; `architecture` is `sm_90` for a cubin, `compute_75` for PTX."""
        macros = [f"-D{name}={value}" for name, value in self.macros.items()]
        return [f"--gpu-architecture={architecture}", "--std=c++17", *macros]

    def digest(self, architecture: str, compiler: str) -> str:
        """Eight hex digits over source, options and compiler version."""
        parts = [self.text, *self.options(architecture), compiler]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]

    def file_name(self, architecture: str, compiler: str) -> str:
        """Name inside a bundle's `kernels/` folder."""
        suffix = "cubin" if architecture.startswith("sm_") else "ptx"
        short = architecture.replace("_", "")
        digest = self.digest(architecture, compiler)
        return f"{self.source}-y{self.tags}-{short}-{digest}.{suffix}"


@lru_cache
def _read_source(file: str) -> str:
    """One text: NVRTC then needs no folder of headers, and a hash covers all that is compiled."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda line: _read_source(line[1]), text)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """One compiled image, as the manifest lists it.

    Attributes:
        file: Name inside `kernels/`.
        source: A key of `SOURCES`.
        tags: Y.
        architecture: `sm_90`, or `compute_75` for PTX.
        compiler: e.g. `nvrtc-13.5`.
    """

    file: str
    source: str
    tags: int
    architecture: str
    compiler: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "KernelRecord":
        """Rebuild from the manifest; older ones say more."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def number(self) -> int:
        """The architecture's number."""
        return int(self.architecture.rpartition("_")[2])


def compile_image(spec: KernelSpec, architecture: str, compiler: Nvrtc | None = None) -> bytes:
    """Compile one source to a cubin (`sm_90`) or to PTX (`compute_75`).

    Raises:
        BackendUnavailableError: NVRTC is not installed.
        ExportError: The compiler refused.
    """
    nvrtc = compiler or load_nvrtc()
    ptx = architecture.startswith("compute_")
    return nvrtc.compile(spec.text, spec.options(architecture), ptx=ptx)[0]


def build_images(
    folder: Path,
    *,
    tags: int,
    architectures: Sequence[int] = ARCHITECTURES,
    sources: Iterable[str] = tuple(SOURCES),
    ready: Collection[str] = (),
) -> list[KernelRecord]:
    """Compile kernels ahead of time into a bundle's `kernels/` folder.

    Args:
        folder: The folder; created when missing.
        tags: Y.
        architectures: SM numbers; those the installed NVRTC does not know are left out.
        sources: Keys of `SOURCES`.
        ready: Names of files in the folder that are known to be whole. Those that would come out
            the same, as their names say, are not compiled again.

    Returns:
        Records for the manifest's `kernels` list.

    Raises:
        BackendUnavailableError: NVRTC is not installed.
        ExportError: The compiler refused.
    """
    nvrtc = load_nvrtc()
    known = nvrtc.architectures()
    wanted = [f"sm_{number}" for number in architectures if number in known]
    wanted.append(f"compute_{max(PTX_ARCHITECTURE, known[0])}")
    folder.mkdir(parents=True, exist_ok=True)
    specs = [KernelSpec(source=source, tags=tags) for source in sources]

    def build(job: tuple[KernelSpec, str]) -> KernelRecord:
        spec, architecture = job
        file = spec.file_name(architecture, nvrtc.name)
        if file not in ready:
            (folder / file).write_bytes(compile_image(spec, architecture, nvrtc))
        return KernelRecord(
            file=file,
            source=spec.source,
            tags=tags,
            architecture=architecture,
            compiler=nvrtc.name,
        )

    # The compiler works outside Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, product(specs, wanted)))


def find_images(
    folder: Path, records: Iterable[KernelRecord], spec: KernelSpec, sm: int
) -> list[Path]:
    """Images that may serve a device, best first: cubins, then PTX.

    A cubin runs on its own architecture and on later ones of the same major number; PTX on every
    later one. Images of another source, option set or compiler than their name says are left out.

    Args:
        folder: A bundle's `kernels/` folder.
        records: The manifest's `kernels` list.
        spec: What is wanted.
        sm: The device's SM number, e.g. 90.
    """
    fitting: list[tuple[bool, int, Path]] = []
    for record in records:
        if (record.source, record.tags) != (spec.source, spec.tags):
            continue
        is_cubin = record.architecture.startswith("sm_")
        if record.number > sm or (is_cubin and record.number // 10 != sm // 10):
            continue
        path = folder / record.file
        if record.file == spec.file_name(record.architecture, record.compiler) and path.is_file():
            fitting.append((is_cubin, record.number, path))
    return [path for _, _, path in sorted(fitting, reverse=True)]
