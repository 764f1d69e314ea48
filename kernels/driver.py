"""The CUDA driver through ctypes: is there one, what can it do, and graph capture.

Loaded before any CUDA binding, because bindings fail in their own ways (or crash) without a driver.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from amlr.errors import AmlrError, BackendUnavailableError

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_FIX = (
    "fix: install the NVIDIA driver (in a container: run it with --gpus all), or use a CPU provider"
)
# The oldest driver interface the kernels and bindings are used with: CUDA 12.
_OLDEST = 12000
_MEANINGS = {
    34: "the library is a toolkit's link-time stub, not a driver",
    100: "the driver sees no device",
    101: "there is no device of that number",
    803: "driver and kernel module are of different versions",
    999: "unknown error, often a driver that needs a reboot",
}
_RELAXED = 2
OUT_OF_MEMORY = 2


class DeviceError(AmlrError, RuntimeError):
    """A CUDA call failed."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has no room for an allocation."""


@lru_cache(maxsize=1)
def load_driver() -> ctypes.CDLL:
    """The driver library.

    Raises:
        BackendUnavailableError: There is none.
    """
    reasons = []
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise BackendUnavailableError(
        f"no NVIDIA driver was found ({reasons[0]}); needed: a driver for CUDA 12 or newer and a "
        f"GPU; {_FIX}"
    )


def probe_driver() -> int:
    """Look for a usable driver and count its devices, at least 1; makes no context.

    Raises:
        BackendUnavailableError: No driver, no device, or a driver that is too old or broken.
    """
    library = load_driver()
    version, devices = ctypes.c_int(), ctypes.c_int()
    calls = (
        ("cuInit", (0,)),
        ("cuDriverGetVersion", (ctypes.byref(version),)),
        ("cuDeviceGetCount", (ctypes.byref(devices),)),
    )
    for name, arguments in calls:
        try:
            code = library[name](*arguments)
        except AttributeError as error:
            raise BackendUnavailableError(
                f"the library loaded as the NVIDIA driver has no {name} ({error}); needed: "
                f"libcuda of a real driver; {_FIX}"
            ) from error
        if code:
            raise BackendUnavailableError(
                f"the NVIDIA driver failed in {name} with code {code}"
                f"{': ' + _MEANINGS[code] if code in _MEANINGS else ''}; needed: a working driver "
                f"and a GPU; {_FIX}"
            )
    if version.value < _OLDEST:
        raise BackendUnavailableError(
            f"the NVIDIA driver supports CUDA {version.value // 1000}, needed: 12 or newer; "
            "fix: update the driver"
        )
    if not devices.value:
        raise BackendUnavailableError(f"the NVIDIA driver sees 0 devices; needed: a GPU; {_FIX}")
    return devices.value


class Graph:
    """Work captured from a stream; launching it costs one call, however many kernels it holds."""

    def __init__(self) -> None:
        self._executable: ctypes.c_void_p | None = None

    def launch(self, stream: Any) -> None:
        """Enqueue the captured work on a stream, in the current context."""
        if self._executable is None:
            raise DeviceError("the graph is not captured yet; launch it after the with block")
        _call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Free the graph."""
        if self._executable is not None:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = None

    def _instantiate(self, graph: ctypes.c_void_p) -> None:
        executable = ctypes.c_void_p()
        _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._executable = executable


@contextmanager
def capture_graph(stream: Any) -> Iterator[Graph]:
    """Record what the block enqueues on a stream instead of running it.

    Independent of the CUDA binding, so that both offer it; the block must not allocate or wait.

    Raises:
        DeviceError: The driver refused, e.g. because something in the block cannot be captured.
    """
    graph, captured = Graph(), ctypes.c_void_p()
    handle = ctypes.c_void_p(stream.handle)
    _call("cuStreamBeginCapture_v2", handle, _RELAXED)
    try:
        yield graph
    except BaseException:
        load_driver()["cuStreamEndCapture"](handle, ctypes.byref(captured))
        if captured:
            _call("cuGraphDestroy", captured)
        raise
    _call("cuStreamEndCapture", handle, ctypes.byref(captured))
    try:
        graph._instantiate(captured)
    finally:
        _call("cuGraphDestroy", captured)


def pop_context() -> None:
    """Take the current context off this thread's stack."""
    _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def _call(name: str, *arguments: Any) -> None:
    code = load_driver()[name](*arguments)
    if code:
        raise DeviceError(f"{name} failed with code {code}")
