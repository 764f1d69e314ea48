"""Named buffers of one session: pinned on the host, and on the device at addresses that stay."""

from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Device, Stream
from amlr.runtime.engine_record import Shape


class Buffers:
    """Pairs of a pinned array and device memory, and device memory alone, by tensor name.

    Attributes:
        at: Device address of each tensor.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pointers: list[int] = []
        self._pinned: dict[str, npt.NDArray[Any]] = {}
        self.at: dict[str, int] = {}

    def add(self, name: str, count: int, dtype: npt.DTypeLike) -> None:
        """A tensor that crosses between host and device; `count` is its largest size."""
        self._pinned[name] = self._device.pinned_empty((count,), dtype)
        self.add_device(name, self._pinned[name].nbytes)

    def add_device(self, name: str, nbytes: int) -> int:
        """Memory that stays on the device.

        Raises:
            DeviceMemoryError: No room.
        """
        pointer = self._device.alloc(nbytes)
        self._pointers.append(pointer)
        self.at[name] = pointer
        return pointer

    def crosses(self, name: str) -> bool:
        """Whether a tensor has a pinned side."""
        return name in self._pinned

    def view(self, name: str, shape: Shape) -> npt.NDArray[Any]:
        """The start of a pinned array, in a shape."""
        return self._pinned[name][: int(np.prod(shape))].reshape(shape)

    def upload(self, name: str, shape: Shape, stream: Stream) -> None:
        """Enqueue a copy to the device."""
        self._device.upload(self.at[name], self.view(name, shape), stream)

    def download(self, name: str, shape: Shape, stream: Stream) -> None:
        """Enqueue a copy to the host."""
        self._device.download(self.view(name, shape), self.at[name], stream)

    def close(self) -> None:
        """Free everything; the device's context must be current."""
        while self._pointers:
            self._device.free(self._pointers.pop())
        self._pinned.clear()
