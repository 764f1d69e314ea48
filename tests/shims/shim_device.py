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
OTHER_GARBAGE = 0x5A
# A device rounds exp and log otherwise than the host; float32 results, relative to max(1, |x|).
CONFIDENCE_TOLERANCE = 2e-5


class ShimStream:
    """Everything has run by the time it is enqueued."""

    handle = 1

    def synchronize(self) -> None:
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
        record: Write launches down, and know which bytes somebody wrote: a result must not
            depend on others, and only written ones may be copied back.
        recording: Recorded launches.
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
    _written: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)

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
        pointer = int(memory.ctypes.data)
        self._memory[pointer] = memory
        if self.record:
            self._written[pointer] = np.zeros(len(memory), np.bool_)
        return pointer

    def free(self, pointer: int) -> None:
        del self._memory[pointer]
        self._written.pop(pointer, None)

    @property
    def live_allocations(self) -> int:
        """Allocations that were not freed."""
        return len(self._memory)

    def pinned_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.empty(shape, dtype)

    def upload(self, pointer: int, array: npt.NDArray[Any], stream: Stream) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
        self._mark(pointer, array.nbytes)

    def download(self, array: npt.NDArray[Any], pointer: int, stream: Stream) -> None:
        if self.record:
            unwritten = np.flatnonzero(~self._written[pointer][: array.nbytes])
            assert not unwritten.size, f"bytes from {unwritten[0]} on come back unwritten"
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        ctypes.memmove(target, source, nbytes)

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

        def execute(values: Sequence[np.generic]) -> None:
            slots = [np.frombuffer(value.tobytes().ljust(8, b"\0"), np.uint64) for value in values]
            params = (ctypes.c_void_p * len(slots))(*(slot.ctypes.data for slot in slots))
            geometry = (ctypes.c_uint * 6)(grid, 1, 1, block, 1, 1)
            run(geometry, ctypes.c_size_t(shared_bytes), params, ctypes.c_uint(self.seed))

        if not self.record:
            execute(arguments)
            return
        # A pointer is a uint64 that is the start of an allocation; everything else is a number.
        places = [int(v) if isinstance(v, np.uint64) and v else 0 for v in arguments]
        before = {at: self._memory[at].copy() for at in places if at}
        written = {at: self._written[at].copy() for at in before}
        twins = {at: np.where(written[at], before[at], np.uint8(OTHER_GARBAGE)) for at in before}
        execute(arguments)
        twin_places = [np.uint64(twins[at].ctypes.data if at else 0) for at in places]
        execute(
            [twin if at else v for at, twin, v in zip(places, twin_places, arguments, strict=True)]
        )
        for at, twin in twins.items():
            self._written[at] = _bytes_written(name, self._memory[at], twin)
        tolerance = CONFIDENCE_TOLERANCE if "confidence" in name else 0.0
        parts = [struct.pack("<I", len(name)), name.encode()]
        parts.append(struct.pack("<6IQ", grid, 1, 1, block, 1, 1, shared_bytes))
        parts.append(struct.pack("<dI", tolerance, len(arguments)))
        for at, value in zip(places, arguments, strict=True):
            if not at:
                parts.append(struct.pack("<I", 0) + value.tobytes().ljust(8, b"\0"))
                continue
            first = _pack_runs(before[at], written[at])
            last = _pack_runs(self._memory[at], self._written[at])
            same = first == last
            parts.append(struct.pack("<IQ", 1, len(before[at])) + first)
            parts.append(struct.pack("<I", not same) + (b"" if same else last))
        self.recording.append(b"".join(parts))

    def capture(self, stream: Stream) -> AbstractContextManager[Graph]:
        raise NotImplementedError("the shim runs at once; graphs are tested on the driver double")

    def close(self) -> None:
        pass

    def saved_recording(self) -> bytes:
        """All recorded launches, as `recording.h` reads them."""
        return struct.pack("<I", len(self.recording)) + b"".join(self.recording)

    def _mark(self, pointer: int, nbytes: int) -> None:
        if self.record:
            self._written[pointer][:nbytes] = True


def set_schedule(library: KernelLibrary, seed: int) -> None:
    """Choose the shim's order of lanes; a device has its own."""
    if isinstance(library.device, ShimDevice):
        library.device.seed = seed


def _bytes_written(
    name: str, result: npt.NDArray[np.uint8], twin: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """Bytes that hold the same after two launches that found different garbage."""
    same: npt.NDArray[np.bool_] = result == twin
    touched = ~same & ((result != GARBAGE) | (twin != OTHER_GARBAGE))
    assert not touched.any(), f"a result of {name} depends on memory that nothing wrote"
    return same


def _pack_runs(memory: npt.NDArray[np.uint8], written: npt.NDArray[np.bool_]) -> bytes:
    """Stretches of written bytes, as `recording.h` reads them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]]).astype(np.int8)))
    firsts, ends = edges[::2], edges[1::2]
    runs = np.stack([firsts, ends - firsts], axis=1).astype("<u8")
    return struct.pack("<I", len(runs)) + runs.tobytes() + memory[written].tobytes()
