"""The device layer: one small protocol over CUDA, and the one rule that picks its implementation.

`open_device()` takes cuda-bindings where it is installed, else pycuda; a binding asked for by name
is never replaced by another. Both use the device's primary context, so engines (TensorRT, ONNX
Runtime) in the same process share memory and streams with the kernels. Nothing is initialised at
import.

Pointers and stream handles are plain integers, as engines want them. Calls need the context to be
current: `with device.current(): ...`, once around a piece of work.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from amlr.errors import BackendUnavailableError, InputError
from amlr.kernels.arrays import AnyArray
from amlr.kernels.driver import DeviceError, DeviceMemoryError, Graph, probe_driver

__all__ = [
    "Device",
    "DeviceError",
    "DeviceMemoryError",
    "Event",
    "Graph",
    "Module",
    "Stream",
    "open_device",
    "probe_driver",
]

# Name -> (module that must be installed, our implementation, what to install). Order = preference.
_BINDINGS = {
    "cuda-bindings": ("cuda.bindings", "amlr.kernels.device_bindings", "amlr[cuda]"),
    "pycuda": ("pycuda", "amlr.kernels.device_pycuda", "amlr[pycuda]"),
}


class Stream(Protocol):
    """A queue of device work."""

    @property
    def handle(self) -> int:
        """The CUstream, as engines take it."""

    def synchronize(self) -> None:
        """Wait until everything enqueued so far is done."""

    def close(self) -> None:
        """Destroy the stream."""


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Mark the work enqueued so far."""

    def synchronize(self) -> None:
        """Wait until the marked work is done."""

    def milliseconds_since(self, earlier: "Event") -> float:
        """Device time between two recorded marks."""

    def close(self) -> None:
        """Destroy the event."""


class Module(Protocol):
    """A loaded cubin or PTX image."""

    def function(self, name: str) -> Any:
        """A kernel, to be passed to `Device.launch`."""


class Device(Protocol):
    """One CUDA device through one binding.

    Attributes:
        binding: "cuda-bindings" or "pycuda".
        name: e.g. "NVIDIA L4".
        sm: Compute capability as a number, e.g. 89.
    """

    binding: str
    name: str
    sm: int

    def current(self) -> AbstractContextManager[None]:
        """Make the device's primary context current on this thread for a block."""

    def alloc(self, nbytes: int) -> int:
        """Allocate device memory; 0 bytes give a valid pointer too.

        Raises:
            DeviceMemoryError: No room.
        """

    def free(self, pointer: int) -> None:
        """Give memory back."""

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> AnyArray:
        """An uninitialised array in page-locked memory, which async copies need to be async."""

    def upload(self, pointer: int, array: AnyArray, stream: Stream) -> None:
        """Copy a C-contiguous host array to the device; it must stay alive until the copy ran."""

    def download(self, array: AnyArray, pointer: int, stream: Stream) -> None:
        """Copy from the device into a C-contiguous host array."""

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Copy within the device."""

    def stream(self) -> Stream:
        """A new stream that does not wait for the default stream."""

    def event(self) -> Event:
        """A new event that can measure time."""

    def load_module(self, image: bytes) -> Module:
        """Load a cubin or PTX text.

        Raises:
            DeviceError: The image is not for this device or driver.
        """

    def launch(
        self,
        function: Any,
        *,
        grid: int,
        block: int,
        shared_bytes: int,
        stream: Stream,
        arguments: Sequence[np.generic],
    ) -> None:
        """Enqueue a kernel; arguments are NumPy scalars of exactly the parameter types."""

    def capture(self, stream: Stream) -> AbstractContextManager[Graph]:
        """Record what the block enqueues on the stream into a graph."""

    def close(self) -> None:
        """Release the primary context."""


def open_device(binding: str = "auto", ordinal: int = 0) -> Device:
    """Open a CUDA device.

    Args:
        binding: "auto", "cuda-bindings" or "pycuda".
        ordinal: Number of the device.

    Raises:
        InputError: No such binding.
        BackendUnavailableError: No binding, no driver or no such device.
    """
    if binding not in ("auto", *_BINDINGS):
        raise InputError(f"no CUDA binding {binding!r}; use auto, {' or '.join(_BINDINGS)}")
    devices = probe_driver()
    if not 0 <= ordinal < devices:
        raise BackendUnavailableError(
            f"device {ordinal} was asked for, but there are {devices}; use 0..{devices - 1}"
        )
    wanted = [name for name in _BINDINGS if binding in ("auto", name)]
    for name in wanted:
        package, implementation, _ = _BINDINGS[name]
        if _is_installed(package):
            device: Device = importlib.import_module(implementation).open_device(ordinal)
            return device
    raise BackendUnavailableError(
        f"no CUDA binding is installed (looked for {', '.join(wanted)}); "
        f'fix: pip install "{_BINDINGS[wanted[0]][2]}"'
    )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
