"""What the compiled CUDA kernels need per architecture, and a gate on it; no GPU, no nvcc.

python -m amlr.benchmarks.kernel_resources
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from amlr.benchmarks.report.figures import markdown_table
from amlr.cli_support import AmlrCommand, progress
from amlr.errors import ExportError, ParityError
from amlr.kernels.images import ARCHITECTURES, SOURCES, KernelSpec
from amlr.kernels.nvrtc import Nvrtc, load_nvrtc

DEFAULT_TAGS = (9, 13, 32)
# Registers per thread: what NVRTC 12.9 and 13.5 give at most, plus slack for other versions. Four
# warps a block with 128 registers still leave room for four blocks a multiprocessor.
BUDGET_BY_TAGS = {
    "linear_viterbi": ((9, 88), (16, 104), (32, 144)),
    "linear_confidence": ((9, 80), (16, 104), (32, 184)),
    "segmental_viterbi": ((32, 80),),
    "segmental_certify": ((32, 80),),
    "box_scores": ((32, 32),),
    "joint_scores": ((32, 64),),
    "joint_box_scores": ((32, 80),),
    "segmental_confidence": ((32, 80),),
}
# The compiler's report has a part for each kernel, which begins with its name.
_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_REGISTERS = re.compile(r"Used (\d+) registers")
_FRAMES = re.compile(r"(\d+) bytes stack frame")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRow:
    """One kernel on one architecture.

    Attributes:
        kernel: Name in the source.
        tags: Y.
        half: float16 emissions.
        sm: Architecture number.
        registers: Per thread.
        budget: Most registers it may use.
        spill_bytes: Spilled registers, stored and loaded, of the kernel and what it calls.
        frame_bytes: Stack frames of the same.
        cubin_bytes: Size of the image the kernel is in.
    """

    kernel: str
    tags: int
    half: bool
    sm: int
    registers: int
    budget: int
    spill_bytes: int
    frame_bytes: int
    cubin_bytes: int

    @property
    def failures(self) -> list[str]:
        """What the gate objects to."""
        problems = []
        if self.registers > self.budget:
            problems.append(f"{self.registers} registers, budget {self.budget}")
        sizes = {"spills": self.spill_bytes, "stack frames": self.frame_bytes}
        problems += [f"{value} bytes of {name}" for name, value in sizes.items() if value]
        return problems


def register_budget(kernel: str, tags: int) -> int:
    """Most registers per thread a kernel may use at a tag count."""
    return next(budget for most, budget in BUDGET_BY_TAGS[kernel] if tags <= most)


def measure(spec: KernelSpec, sm: int, nvrtc: Nvrtc | None = None) -> list[ResourceRow]:
    """Compile one source for one architecture and read what the compiler reports of its kernels.

    Raises:
        BackendUnavailableError: NVRTC is not installed.
        ExportError: The compiler refused, or its report does not name the registers.
    """
    compiler = nvrtc or load_nvrtc()
    image, report = compiler.compile(spec.text, [*spec.options(f"sm_{sm}"), "--ptxas-options=-v"])
    _, *parts = _KERNEL.split(report)
    rows = []
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        registers = _REGISTERS.search(text)
        if registers is None:
            raise ExportError(
                f"{compiler.name} does not report the registers of {name}; needed: NVRTC 12 or 13"
            )
        kernel = name.removesuffix(spec.variant)
        rows.append(
            ResourceRow(
                kernel=kernel,
                tags=spec.tags,
                half=spec.half,
                sm=sm,
                registers=int(registers[1]),
                budget=register_budget(kernel, spec.tags),
                spill_bytes=sum(map(int, _SPILLS.findall(text))),
                frame_bytes=sum(map(int, _FRAMES.findall(text))),
                cubin_bytes=len(image),
            )
        )
    return rows


def measure_all(
    tags: Iterable[int] = DEFAULT_TAGS, architectures: Iterable[int] = ARCHITECTURES
) -> list[ResourceRow]:
    """Resources of every kernel, in the order kernel, tags, dtype, architecture."""
    nvrtc = load_nvrtc()
    known = set(nvrtc.architectures())
    jobs = [
        (KernelSpec(source=source, tags=count, half=half), sm)
        for source in SOURCES
        for count in tags
        for half in (False, True)
        for sm in architectures
        if sm in known
    ]
    rows = [row for spec, sm in progress(jobs, "compiling") for row in measure(spec, sm, nvrtc)]
    order = [kernel for kernels in SOURCES.values() for kernel in kernels]
    return sorted(rows, key=lambda row: (order.index(row.kernel), row.tags, row.half, row.sm))


def resource_table(rows: list[ResourceRow]) -> str:
    """Registers per architecture, one line for each kernel, tag count and dtype."""
    architectures = sorted({row.sm for row in rows})
    groups: dict[tuple[str, int, bool], list[ResourceRow]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.tags, row.half), []).append(row)
    lines = []
    for (kernel, tags, half), group in groups.items():
        registers = {row.sm: str(row.registers) for row in group}
        figures = (
            group[0].budget,
            max(row.spill_bytes for row in group),
            max(row.frame_bytes for row in group),
        )
        lines.append(
            [
                *(f"`{kernel}`", str(tags), "float16" if half else "float32"),
                *(registers.get(sm, "") for sm in architectures),
                *map(str, figures),
            ]
        )
    names = (f"sm_{sm}" for sm in architectures)
    return markdown_table(["kernel", "Y", "emissions", *names, "budget", "spills", "frames"], lines)


@click.command(cls=AmlrCommand)
@click.option("--tags", type=click.IntRange(1, 32), multiple=True, default=DEFAULT_TAGS)
@click.option("--sm", type=int, multiple=True, default=ARCHITECTURES, help="Architectures.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers.")
def main(tags: tuple[int, ...], sm: tuple[int, ...], json_file: Path | None) -> None:
    """Print registers, spills and stack of every CUDA kernel; exit 1 if one breaks its limits.

    Example: python -m amlr.benchmarks.kernel_resources --tags 9 --sm 90
    """
    rows = measure_all(tags=tags, architectures=sm)
    click.echo(resource_table(rows))
    click.echo(f"\nRegisters per thread; compiled by {load_nvrtc().name}. Spills, frames: bytes.")
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    failures = [
        f"{row.kernel} (Y = {row.tags}, sm_{row.sm}): {', '.join(row.failures)}"
        for row in rows
        if row.failures
    ]
    if failures:
        raise ParityError(f"{len(failures)} kernels break the resource gate: {'; '.join(failures)}")


if __name__ == "__main__":
    main()
