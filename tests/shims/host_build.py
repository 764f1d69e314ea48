"""Builds the real kernel sources for the host with g++, behind the shim `simt.h`."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from amlr.kernels.images import SOURCES, KernelSpec
from once import once

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
# No contraction: the host must add and multiply in separate, rounded steps, as the kernels ask for.
_FLAGS = ("-std=c++17", "-O1", "-w", "-ffp-contract=off", "-pthread", f"-I{HERE}", f"-I{KERNELS}")
SANITIZERS = {
    "plain": (),
    # Lines of the report, but no more: compiling takes longer than the replays.
    "asan": ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "tsan": ("-g1", "-fsanitize=thread", "-DSIMT_THREADS"),
}


def functions(spec: KernelSpec) -> list[str]:
    """Names of a source's kernels for this spec."""
    return [spec.function(kernel) for kernel in SOURCES[spec.source]]


@dataclass(slots=True)
class HostBuilder:
    """Compiles into one folder, which processes may share; every result is kept under its name.

    Attributes:
        folder: Where libraries and programs go.
        sources: Sources by name that replace the real ones (for mutants).
    """

    folder: Path
    sources: dict[str, Path] = field(default_factory=dict)

    def library(self, spec: KernelSpec) -> Path:
        """A shared library that exports `host_<function>` for every kernel of the source."""
        target = self.folder / f"{spec.function(spec.source)}.so"
        return self._compile(spec, "host_kernel.cpp", target, ("-fPIC", "-shared"))

    def driver_double(self, stubs: Iterable[str] = ()) -> Path:
        """A folder with the driver double as `libcuda.so.1`.

        Args:
            stubs: Further functions to define, which only return an error: a binding that is
                linked to the driver loads only if all it could call exist.
        """
        names = sorted(stubs)
        target = self.folder / ("driver-stubs" if names else "driver") / "libcuda.so.1"
        target.parent.mkdir(exist_ok=True)

        def build(target: Path) -> None:
            extra = target.parent / "stubs.cpp"
            extra.write_text(
                "".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in names)
            )
            flags = ("-fPIC", "-shared", "-Wl,-soname,libcuda.so.1", "-ldl")
            _run_compiler([str(HERE / "driver_double.cpp"), str(extra), *flags], target)

        return once(target, build).parent

    def replay(self, spec: KernelSpec, sanitizer: str = "plain") -> Path:
        """The program that replays recorded launches."""
        target = self.folder / f"replay_{spec.function(spec.source)}_{sanitizer}"
        return self._compile(spec, "replay.cpp", target, SANITIZERS[sanitizer])

    def device_replay(self) -> Path:
        """The program that replays recorded launches on a device, or on the driver double."""
        arguments = [str(HERE / "replay_device.cpp"), "-ldl"]
        return once(self.folder / "replay_device", lambda target: _run_compiler(arguments, target))

    def _compile(self, spec: KernelSpec, main: str, target: Path, flags: tuple[str, ...]) -> Path:
        source = self.sources.get(spec.source, KERNELS / f"{spec.source}.cu")
        listed = " ".join(f"X({function})" for function in functions(spec))
        macros = {**spec.macros, "KERNEL_FILE": f'"{source}"', "KERNELS": listed}
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        arguments = [str(HERE / main), *flags, *defines]
        return once(target, lambda target: _run_compiler(arguments, target))


def _run_compiler(arguments: list[str], target: Path) -> None:
    partial = target.with_suffix(".partial")
    command = ["g++", *_FLAGS, *arguments, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ failed: {' '.join(command)}\n{done.stderr}")
    partial.replace(target)
