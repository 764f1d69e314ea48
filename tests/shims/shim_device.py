"""A `Device` in host memory, whose launches run the real kernels through the shim."""

import ctypes
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Event, Graph, Stream
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import KernelLibrary
from shims.host_build import HostBuilder

GARBAGE = 0xA5


class ShimStream:
    """Everything has run by the time it is enqueued."""

    handle = 1

    def synchronize(self) -> None:
        pass

    def wait(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class ShimEvent:
    """A mark without a time."""

    def record(self, stream: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def milliseconds_since(self, earlier: Event) -> float:
        return 0.0

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ShimModule:
    """A host library in place of a cubin."""

    library: ctypes.CDLL

    def function(self, name: str) -> Any:
        return name, self.library[f"host_{name}"]


@dataclass
class ShimDevice:
    """Runs kernels on the CPU.

    Attributes:
        builder: Builds the host libraries.
        seed: Schedule of the fibers: 0 lane order, else random.
        recording: Recorded launches, when `record` is set.
    """

    builder: HostBuilder
    seed: int = 0
    record: bool = False
    recording: list[bytes] = field(default_factory=list)
    binding: str = "shim"
    name: str = "host shim"
    sm: int = 90
    launches: int = 0
    _memory: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def compile(self, spec: KernelSpec, architecture: str) -> bytes:
        """Stands in for NVRTC: the 'image' names a host library."""
        return json.dumps(str(self.builder.library(spec))).encode()

    def library(self) -> KernelLibrary:
        """The kernels, as launched by the real host code."""
        return KernelLibrary(self, compile_with=self.compile)

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def alloc(self, nbytes: int) -> int:
        memory = np.full(max(nbytes, 1), GARBAGE, np.uint8)
        self._memory[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def free(self, pointer: int) -> None:
        del self._memory[pointer]

    @property
    def live_allocations(self) -> int:
        """Allocations that were not freed."""
        return len(self._memory)

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.empty(shape, dtype)

    def upload(self, pointer: int, array: npt.NDArray[Any], stream: Stream) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def download(self, array: npt.NDArray[Any], pointer: int, stream: Stream) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        ctypes.memmove(target, source, nbytes)

    def fill(self, pointer: int, value: int, nbytes: int, stream: Stream) -> None:
        ctypes.memset(pointer, value, nbytes)

    def stream(self) -> ShimStream:
        return ShimStream()

    def event(self) -> ShimEvent:
        return ShimEvent()

    def load_module(self, image: bytes) -> ShimModule:
        return ShimModule(ctypes.CDLL(json.loads(image)))

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
        name, run = function
        self.launches += 1
        before = self._contents(arguments) if self.record else []
        slots = [np.frombuffer(value.tobytes().ljust(8, b"\0"), np.uint64) for value in arguments]
        params = (ctypes.c_void_p * len(slots))(*(slot.ctypes.data for slot in slots))
        geometry = (ctypes.c_uint * 6)(grid, 1, 1, block, 1, 1)
        run(geometry, ctypes.c_size_t(shared_bytes), params, ctypes.c_uint(self.seed))
        if self.record:
            after = self._contents(arguments)
            self.recording.append(_pack(name, geometry, shared_bytes, arguments, before, after))

    def capture(self, stream: Stream) -> AbstractContextManager[Graph]:
        raise NotImplementedError("the shim runs at once; graphs are tested on the driver double")

    def close(self) -> None:
        pass

    def saved_recording(self) -> bytes:
        """All recorded launches, as `replay.cpp` reads them."""
        return struct.pack("<I", len(self.recording)) + b"".join(self.recording)

    def _contents(self, arguments: Sequence[np.generic]) -> list[bytes | None]:
        # A pointer is a uint64 that is the start of an allocation; everything else is a number.
        found: list[bytes | None] = []
        for value in arguments:
            memory = self._memory.get(int(value)) if isinstance(value, np.uint64) else None
            found.append(None if memory is None else memory.tobytes())
        return found


def set_schedule(library: KernelLibrary, seed: int) -> None:
    """Choose the shim's order of lanes; a device has its own."""
    if isinstance(library.device, ShimDevice):
        library.device.seed = seed


def _pack(
    name: str,
    geometry: Any,
    shared_bytes: int,
    arguments: Sequence[np.generic],
    before: list[bytes | None],
    after: list[bytes | None],
) -> bytes:
    parts = [
        struct.pack("<I", len(name)) + name.encode(),
        struct.pack("<6IQI", *geometry, shared_bytes, len(arguments)),
    ]
    for value, first, last in zip(arguments, before, after, strict=True):
        if first is None or last is None:
            parts.append(struct.pack("<I", 0) + value.tobytes().ljust(8, b"\0"))
        else:
            parts.append(struct.pack("<IQ", 1, len(first)) + first + last)
    return b"".join(parts)
