"""The device layer over cuda-bindings, NVIDIA's own binding; `device` documents the methods."""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver as cuda

from amlr.kernels.arrays import AnyArray
from amlr.kernels.driver import (
    OUT_OF_MEMORY,
    DeviceError,
    DeviceMemoryError,
    Graph,
    capture_graph,
)


def _call(function: Any, *arguments: Any) -> Any:
    """Call a driver function; return its results without the status."""
    status, *results = function(*arguments)
    code = int(status)
    if code:
        kind = DeviceMemoryError if code == OUT_OF_MEMORY else DeviceError
        text = cuda.cuGetErrorString(status)[1] or b"unknown error"
        raise kind(f"{function.__name__} failed with code {code}: {text.decode()}")
    return results[0] if len(results) == 1 else tuple(results)


class _Stream:
    """A CUstream."""

    def __init__(self) -> None:
        self._stream = _call(cuda.cuStreamCreate, int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        _call(cuda.cuStreamSynchronize, self._stream)

    def close(self) -> None:
        _call(cuda.cuStreamDestroy, self._stream)


class _Event:
    """A CUevent."""

    def __init__(self) -> None:
        self.raw = _call(cuda.cuEventCreate, 0)

    def record(self, stream: _Stream) -> None:
        _call(cuda.cuEventRecord, self.raw, stream.handle)

    def synchronize(self) -> None:
        _call(cuda.cuEventSynchronize, self.raw)

    def milliseconds_since(self, earlier: "_Event") -> float:
        return float(_call(cuda.cuEventElapsedTime, earlier.raw, self.raw))

    def close(self) -> None:
        _call(cuda.cuEventDestroy, self.raw)


class _Module:
    """A CUmodule."""

    def __init__(self, image: bytes) -> None:
        # PTX must end in a zero byte; a cubin does not mind one.
        self._image = image + b"\0"
        self._module = _call(cuda.cuModuleLoadData, self._image)

    def function(self, name: str) -> Any:
        return _call(cuda.cuModuleGetFunction, self._module, name.encode())


class _Device:
    """One device through cuda-bindings; see `Device` for the methods."""

    binding = "cuda-bindings"

    def __init__(self, ordinal: int) -> None:
        _call(cuda.cuInit, 0)
        self._device = _call(cuda.cuDeviceGet, ordinal)
        attribute = cuda.CUdevice_attribute
        major, minor = (
            _call(cuda.cuDeviceGetAttribute, which, self._device)
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.sm = 10 * major + minor
        self.name = _call(cuda.cuDeviceGetName, 128, self._device).split(b"\0")[0].decode()
        self._context = _call(cuda.cuDevicePrimaryCtxRetain, self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        _call(cuda.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _call(cuda.cuCtxPopCurrent)

    def alloc(self, nbytes: int) -> int:
        return int(_call(cuda.cuMemAlloc, max(nbytes, 1)))

    def free(self, pointer: int) -> None:
        _call(cuda.cuMemFree, pointer)

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> AnyArray:
        kind = np.dtype(dtype)
        nbytes = max(int(np.prod(shape)) * kind.itemsize, 1)
        address = int(_call(cuda.cuMemHostAlloc, nbytes, 0))
        memory = (ctypes.c_ubyte * nbytes).from_address(address)
        # Not at exit: the driver may be gone by then, and frees everything anyway.
        weakref.finalize(memory, self._free_pinned, address).atexit = False
        # The view keeps `memory` alive, and `memory` its finalizer.
        array: AnyArray = np.ndarray(shape, kind, memoryview(memory))
        return array

    def _free_pinned(self, address: int) -> None:
        with self.current():
            _call(cuda.cuMemFreeHost, address)

    def upload(self, pointer: int, array: AnyArray, stream: _Stream) -> None:
        if array.nbytes:
            address = array.ctypes.data
            _call(cuda.cuMemcpyHtoDAsync, pointer, address, array.nbytes, stream.handle)

    def download(self, array: AnyArray, pointer: int, stream: _Stream) -> None:
        if array.nbytes:
            address = array.ctypes.data
            _call(cuda.cuMemcpyDtoHAsync, address, pointer, array.nbytes, stream.handle)

    def copy(self, target: int, source: int, nbytes: int, stream: _Stream) -> None:
        _call(cuda.cuMemcpyDtoDAsync, target, source, nbytes, stream.handle)

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
        # The driver copies the arguments during the call, so they need not outlive it.
        values = b"".join(argument.tobytes().ljust(8, b"\0") for argument in arguments)
        storage = ctypes.create_string_buffer(values, len(values))
        first = ctypes.addressof(storage)
        pointers = (ctypes.c_void_p * len(arguments))(
            *range(first, first + len(values), 8)  # one slot of eight bytes each
        )
        _call(
            cuda.cuLaunchKernel,
            function,
            *(grid, 1, 1),
            *(block, 1, 1),
            shared_bytes,
            stream.handle,
            ctypes.addressof(pointers),
            0,
        )

    def capture(self, stream: _Stream) -> AbstractContextManager[Graph]:
        return capture_graph(stream)

    def close(self) -> None:
        _call(cuda.cuDevicePrimaryCtxRelease, self._device)


def open_device(ordinal: int) -> _Device:
    """Open a device; the driver has been probed."""
    return _Device(ordinal)
