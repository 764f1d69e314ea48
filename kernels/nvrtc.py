"""NVRTC, NVIDIA's run-time compiler, through ctypes: CUDA C++ text in, cubin or PTX out.

Needs neither a GPU nor a driver nor nvcc. ctypes, because it then serves every CUDA binding, and a
toolkit's own library just as well as the `nvidia-cuda-nvrtc` wheel.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from amlr.errors import BackendUnavailableError, ExportError

# Oldest and newest library versions whose interface is the one used here.
_VERSIONS = (13, 12)


class Nvrtc:
    """One loaded NVRTC library.

    Attributes:
        version: (major, minor), e.g. (13, 5).
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    @property
    def name(self) -> str:
        """The compiler as it is named in hashes and manifests, e.g. `nvrtc-13.5`."""
        return f"nvrtc-{self.version[0]}.{self.version[1]}"

    def architectures(self) -> tuple[int, ...]:
        """The SM numbers this library can compile for, ascending."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found))
        return tuple(sorted(found))

    def compile(
        self, source: str, options: Sequence[str], *, ptx: bool = False
    ) -> tuple[bytes, str]:
        """Compile one source.

        Args:
            source: CUDA C++ text.
            options: Compiler options, among them `--gpu-architecture`.
            ptx: Return PTX text; otherwise a cubin, which needs a real architecture (`sm_90`).

        Returns:
            The image, and what the compiler printed.

        Raises:
            ExportError: The compiler refused; the message holds its log.
        """
        library = self._library
        program = ctypes.c_void_p()
        self._check(
            library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
            )
        )
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            code = library.nvrtcCompileProgram(program, len(options), arguments)
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if code:
                raise ExportError(
                    f"{self.name} could not compile with {' '.join(options)}: "
                    f"{self._message(code)}; {log or 'it printed nothing'}"
                )
            return self._read(program, "PTX" if ptx else "CUBIN"), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(self._library[f"nvrtcGet{what}Size"](program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(self._library[f"nvrtcGet{what}"](program, buffer))
        return buffer.raw

    def _message(self, code: int) -> str:
        return bytes(self._library.nvrtcGetErrorString(code)).decode()

    def _check(self, code: int) -> None:
        if code:
            raise ExportError(f"NVRTC failed: {self._message(code)} (code {code})")


@lru_cache(maxsize=1)
def load_nvrtc() -> Nvrtc:
    """Load NVRTC from the installed wheel, a toolkit or the system.

    Raises:
        BackendUnavailableError: No library was found.
    """
    for candidate in _candidates():
        try:
            return Nvrtc(_open(candidate))
        except OSError:
            continue
    raise BackendUnavailableError(
        "NVRTC, the CUDA run-time compiler, was not found; needed to compile the CUDA decoders; "
        "fix: pip install nvidia-cuda-nvrtc (or take a bundle whose kernels/ folder has a cubin "
        "for this GPU)"
    )


def _open(path: str) -> ctypes.CDLL:
    """Load NVRTC; wheels of CUDA 13.0 find their builtins by name only, not beside themselves."""
    if Path(path).is_file():
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
    return ctypes.CDLL(path)


def _candidates() -> Iterator[str]:
    names = [
        name
        for version in _VERSIONS
        for name in (f"libnvrtc.so.{version}", f"nvrtc64_{version}0_0.dll")
    ]
    for entry in sys.path:
        packages = Path(entry or ".") / "nvidia"
        if packages.is_dir():
            for name in names:
                yield from (str(path) for path in sorted(packages.glob(f"*/*/{name}")))
    yield from names  # what the loader finds by itself
    for root in (Path("/usr/local/cuda"), Path("/opt/cuda")):
        yield from (str(root / "lib64" / name) for name in names if name.startswith("lib"))
