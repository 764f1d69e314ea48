"""A double of the CUDA driver: device memory is host memory, streams run at once, graphs replay.

It is stricter than a driver where that finds mistakes: every copy is checked against the allocation
it touches, and nothing works without a current context.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import BackendUnavailableError
from amlr.kernels.device import DeviceError, DeviceMemoryError

GARBAGE = 0xA5
Work = Callable[[], None]


class DoubleStream:
    """Runs work when it is enqueued, or records it while a graph is captured."""

    def __init__(self, device: "DoubleDevice", handle: int) -> None:
        self.device, self.handle = device, handle
        self.recording: list[Work] | None = None
        self.closed = False

    def enqueue(self, work: Work) -> None:
        """Run or record."""
        if self.closed:
            raise DeviceError("the stream is closed")
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def synchronize(self) -> None:
        if self.recording is not None:
            raise DeviceError("a capture must not wait")

    def close(self) -> None:
        self.closed = True
        del self.device.streams[self.handle]


class DoubleGraph:
    """Recorded work."""

    def __init__(self, device: "DoubleDevice") -> None:
        self.device = device
        self.work: list[Work] = []
        self.closed = False
        device.graphs += 1

    def launch(self, stream: DoubleStream) -> None:
        if self.closed:
            raise DeviceError("the graph is closed")
        self.device.graph_launches += 1
        for work in self.work:
            stream.enqueue(work)

    def close(self) -> None:
        self.closed = True
        self.device.graphs -= 1


class DoubleDevice:
    """See the module docstring.

    Attributes:
        alloc_limit: Allocations after which memory is "full"; None never.
        free_bytes: Memory that counts as free.
        kernels: A `ShimDevice` that runs the project's CUDA kernels on the host, or None.
    """

    binding = "double"
    name = "driver double"

    def __init__(self, sm: int = 89, free_bytes: int = 8 << 30, kernels: Any = None) -> None:
        self.kernels = kernels
        self.sm, self.free_bytes = sm, free_bytes
        self.alloc_limit: int | None = None
        self.allocations = 0
        self.streams: dict[int, DoubleStream] = {}
        self.graphs = 0
        self.graph_launches = 0
        self.closed = False
        self.uploads = 0
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._depth = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def _require_context(self) -> None:
        if not getattr(self._depth, "value", 0):
            raise DeviceError("invalid device context (code 201): no context is current")
        if self.closed:
            raise DeviceError("the device is closed")

    # Memory ----------------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        self._require_context()
        self.allocations += 1
        if self.alloc_limit is not None and self.allocations > self.alloc_limit:
            raise DeviceMemoryError("cuMemAlloc failed with code 2: out of memory")
        memory = np.full(max(nbytes, 1), GARBAGE, np.uint8)
        self._memory[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def free(self, pointer: int) -> None:
        self._require_context()
        del self._memory[pointer]

    @property
    def live_allocations(self) -> int:
        """Allocations that were not freed."""
        return len(self._memory)

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether a range lies within one live allocation."""
        return any(
            start <= address and address + nbytes <= start + memory.nbytes
            for start, memory in self._memory.items()
        )

    def _check(self, address: int, nbytes: int) -> None:
        if not self.holds(address, nbytes):
            raise DeviceError(f"illegal address {address:#x} for {nbytes} bytes (code 700)")

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        self._require_context()
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(GARBAGE)
        return array

    def upload(self, pointer: int, array: npt.NDArray[Any], stream: DoubleStream) -> None:
        self._require_context()
        assert array.flags.c_contiguous
        self._check(pointer, array.nbytes)
        self.uploads += 1

        def work() -> None:
            ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

        stream.enqueue(work)

    def download(self, array: npt.NDArray[Any], pointer: int, stream: DoubleStream) -> None:
        self._require_context()
        assert array.flags.c_contiguous
        self._check(pointer, array.nbytes)

        def work() -> None:
            ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

        stream.enqueue(work)

    def copy(self, target: int, source: int, nbytes: int, stream: DoubleStream) -> None:
        self._require_context()
        self._check(target, nbytes)
        self._check(source, nbytes)
        stream.enqueue(lambda: _ignore(ctypes.memmove(target, source, nbytes)))

    # Streams and graphs ----------------------------------------------------------------------

    def stream(self) -> DoubleStream:
        self._require_context()
        with self._lock:
            handle = max(self.streams, default=0) + 1
            self.streams[handle] = DoubleStream(self, handle)
            return self.streams[handle]

    def event(self) -> Any:
        raise NotImplementedError

    @contextmanager
    def capture(self, stream: DoubleStream) -> Iterator[DoubleGraph]:
        self._require_context()
        graph = DoubleGraph(self)
        stream.recording = []
        try:
            yield graph
        except BaseException:
            stream.recording = None
            graph.close()
            raise
        graph.work = stream.recording
        stream.recording = None

    def load_module(self, image: bytes) -> Any:
        self._require_context()
        if self.kernels is None:
            raise BackendUnavailableError("this double runs no kernels")
        return self.kernels.load_module(image)

    def launch(self, function: Any, *, stream: DoubleStream, **geometry: Any) -> None:
        self._require_context()
        stream.enqueue(lambda: self.kernels.launch(function, stream=stream, **geometry))

    def close(self) -> None:
        self.closed = True


def _ignore(result: object) -> None:
    """Drop a C function's return value."""
