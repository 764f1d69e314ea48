"""Device memory of a session: blocks whose parts cross together, or stay on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Device, Stream
from amlr.runtime.engine_record import Shape

# Kernels and engine libraries read aligned vectors.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Part:
    """One array inside a block."""

    shape: Shape
    dtype: npt.DTypeLike

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Block:
    """Arrays that lie one after another in pinned memory and at the same offsets on the device.

    They cross the bus in one copy. Parts that only the device uses come last and are not copied.

    Attributes:
        at: Device address of each part.
        host: Pinned array of each part that crosses.
    """

    def __init__(
        self, device: Device, crossing: Mapping[str, Part], resident: Mapping[str, Part]
    ) -> None:
        """Allocate; the device's context must be current.

        Args:
            device: Where.
            crossing: Parts with a pinned side.
            resident: Parts on the device alone.

        Raises:
            DeviceMemoryError: No room.
        """
        self._device = device
        offsets, size = {}, 0
        for name, part in crossing.items():
            offsets[name] = size
            size += _aligned(part.nbytes)
        self._pinned = device.pinned_empty((size,), np.uint8)
        # Rows of padding are never written, and a copy must not carry another process's bytes.
        self._pinned.fill(0)
        for name, part in resident.items():
            offsets[name] = size
            size += _aligned(part.nbytes)
        self._pointer = device.alloc(size)
        self.at = {name: self._pointer + offset for name, offset in offsets.items()}
        self.host: dict[str, npt.NDArray[Any]] = {
            name: self._pinned[offsets[name] : offsets[name] + part.nbytes]
            .view(part.dtype)
            .reshape(part.shape)
            for name, part in crossing.items()
        }

    def upload(self, stream: Stream) -> None:
        """Enqueue the copy of all crossing parts to the device."""
        self._device.upload(self._pointer, self._pinned, stream)

    def download(self, stream: Stream) -> None:
        """Enqueue the copy of all crossing parts to the host."""
        self._device.download(self._pinned, self._pointer, stream)

    def close(self) -> None:
        """Free both sides; nothing enqueued may still use them, and no view may be read again."""
        self.host.clear()
        self._pinned = np.zeros(0, np.uint8)
        self._device.free(self._pointer)


def _aligned(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
