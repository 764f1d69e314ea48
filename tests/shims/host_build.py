"""Builds the real kernel sources for the host with g++, behind the shim `simt.h`."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from amlr.kernels.images import SOURCES, KernelSpec

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
# No contraction: the host must add and multiply in separate, rounded steps, as the kernels ask for.
_FLAGS = ("-std=c++17", "-O1", "-w", "-ffp-contract=off", "-pthread", f"-I{HERE}", f"-I{KERNELS}")
SANITIZERS = {
    "plain": (),
    "asan": ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "tsan": ("-g", "-fsanitize=thread", "-DSIMT_THREADS"),
}


def functions(spec: KernelSpec) -> list[str]:
    """Names of a source's kernels for this spec."""
    return [spec.function(kernel) for kernel in SOURCES[spec.source]]


@dataclass(slots=True)
class HostBuilder:
    """Compiles into one folder; every result is kept under its name.

    Attributes:
        folder: Where libraries and programs go.
        sources: Sources by name that replace the real ones (for mutants).
    """

    folder: Path
    sources: dict[str, Path] = field(default_factory=dict)

    def library(self, spec: KernelSpec) -> Path:
        """A shared library that exports `host_<function>` for every kernel of the source."""
        target = self.folder / f"{spec.source}{spec.variant}.so"
        if not target.exists():
            self._compile(spec, "host_kernel.cpp", target, ("-fPIC", "-shared"))
        return target

    def driver_double(self, stubs: Iterable[str] = ()) -> Path:
        """A folder with the driver double as `libcuda.so.1`.

        Args:
            stubs: Further functions to define, which only return an error: a binding that is
                linked to the driver loads only if all it could call exist.
        """
        target = self.folder / "driver" / "libcuda.so.1"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            extra = target.parent / "stubs.cpp"
            extra.write_text(
                "".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in sorted(stubs))
            )
            flags = ("-fPIC", "-shared", "-Wl,-soname,libcuda.so.1", "-ldl")
            _run_compiler([str(HERE / "driver_double.cpp"), str(extra), *flags], target)
        return target.parent

    def replay(self, spec: KernelSpec, sanitizer: str = "plain") -> Path:
        """The program that replays recorded launches."""
        target = self.folder / f"replay_{spec.source}{spec.variant}_{sanitizer}"
        if not target.exists():
            self._compile(spec, "replay.cpp", target, SANITIZERS[sanitizer])
        return target

    def device_replay(self) -> Path:
        """The program that replays recorded launches on a device, or on the driver double."""
        target = self.folder / "replay_device"
        if not target.exists():
            _run_compiler([str(HERE / "replay_device.cpp"), "-ldl"], target)
        return target

    def _compile(self, spec: KernelSpec, main: str, target: Path, flags: tuple[str, ...]) -> None:
        source = self.sources.get(spec.source, KERNELS / f"{spec.source}.cu")
        listed = " ".join(f"X({function})" for function in functions(spec))
        macros = {**spec.macros, "KERNEL_FILE": f'"{source}"', "KERNELS": listed}
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        _run_compiler([str(HERE / main), *flags, *defines], target)


def _run_compiler(arguments: list[str], target: Path) -> None:
    partial = target.with_suffix(".partial")
    command = ["g++", *_FLAGS, *arguments, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ failed: {' '.join(command)}\n{done.stderr}")
    partial.replace(target)
