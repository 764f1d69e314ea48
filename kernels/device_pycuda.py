"""The device layer over pycuda; `device` documents the methods.

Never `pycuda.autoinit`: it makes a context of its own.
"""

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda

from amlr.kernels.arrays import AnyArray
from amlr.kernels.driver import (
    DeviceError,
    DeviceMemoryError,
    Graph,
    capture_graph,
    pop_context,
)


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call pycuda; raise our errors."""
    try:
        return function(*arguments, **options)
    except cuda.MemoryError as error:
        raise DeviceMemoryError(str(error)) from error
    except cuda.Error as error:
        raise DeviceError(str(error)) from error


class _Stream:
    """A pycuda stream."""

    def __init__(self) -> None:
        self.raw = _call(cuda.Stream, 1)  # 1: CU_STREAM_NON_BLOCKING
        self.handle = int(self.raw.handle)

    def synchronize(self) -> None:
        _call(self.raw.synchronize)

    def close(self) -> None:
        self.raw = None


class _Event:
    """A pycuda event."""

    def __init__(self) -> None:
        self.raw = _call(cuda.Event)

    def record(self, stream: _Stream) -> None:
        _call(self.raw.record, stream.raw)

    def synchronize(self) -> None:
        _call(self.raw.synchronize)

    def milliseconds_since(self, earlier: "_Event") -> float:
        return float(_call(self.raw.time_since, earlier.raw))

    def close(self) -> None:
        self.raw = None


class _Module:
    """A loaded image."""

    def __init__(self, image: bytes) -> None:
        # PTX must end in a zero byte; a cubin does not mind one.
        self._module = _call(cuda.module_from_buffer, image + b"\0")

    def function(self, name: str) -> Any:
        return _call(self._module.get_function, name)


class _Device:
    """One device through pycuda; see `Device` for the methods."""

    binding = "pycuda"

    def __init__(self, ordinal: int) -> None:
        _call(cuda.init)
        device = _call(cuda.Device, ordinal)
        major, minor = _call(device.compute_capability)
        self.sm = 10 * major + minor
        self.name = str(_call(device.name))
        self._context = _call(device.retain_primary_context)
        # pycuda frees memory with its last reference, so allocations are kept by address.
        self._allocations: dict[int, Any] = {}
        # Left to its destructor, pycuda detaches a primary context wrongly and warns at exit.
        atexit.register(self.close)

    @contextmanager
    def current(self) -> Iterator[None]:
        _call(self._context.push)
        try:
            yield
        finally:
            _call(cuda.Context.pop)

    def alloc(self, nbytes: int) -> int:
        allocation = _call(cuda.mem_alloc, max(nbytes, 1))
        pointer = int(allocation)
        self._allocations[pointer] = allocation
        return pointer

    def free(self, pointer: int) -> None:
        _call(self._allocations.pop(pointer).free)

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> AnyArray:
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        flat = _call(cuda.pagelocked_empty, max(count, 1), kind)
        array: AnyArray = flat[:count].reshape(shape)
        return array

    def upload(self, pointer: int, array: AnyArray, stream: _Stream) -> None:
        if array.nbytes:
            _call(cuda.memcpy_htod_async, pointer, array, stream.raw)

    def download(self, array: AnyArray, pointer: int, stream: _Stream) -> None:
        if array.nbytes:
            _call(cuda.memcpy_dtoh_async, array, pointer, stream.raw)

    def copy(self, target: int, source: int, nbytes: int, stream: _Stream) -> None:
        _call(cuda.memcpy_dtod_async, target, source, nbytes, stream.raw)

    def stream(self) -> _Stream:
        return _Stream()

    def event(self) -> _Event:
        return _Event()

    def load_module(self, image: bytes) -> _Module:
        return _Module(image)

    def launch(
        self,
        function: Any,
        *,
        grid: int,
        block: int,
        shared_bytes: int,
        stream: _Stream,
        arguments: Sequence[np.generic],
    ) -> None:
        # pycuda packs NumPy scalars with the alignment of C.
        _call(
            function,
            *arguments,
            grid=(grid, 1, 1),
            block=(block, 1, 1),
            shared=shared_bytes,
            stream=stream.raw,
        )

    def capture(self, stream: _Stream) -> AbstractContextManager[Graph]:
        return capture_graph(stream)

    def close(self) -> None:
        if self._context is None:
            return
        atexit.unregister(self.close)
        with self.current():
            self._allocations.clear()
        _call(self._context.detach)
        pop_context()  # detach leaves the context it made current on the stack
        self._context = None


def open_device(ordinal: int) -> _Device:
    """Open a device; the driver has been probed."""
    return _Device(ordinal)
