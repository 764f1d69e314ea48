"""Pictures on the device: one block of memory, addressed by slot, at an address that never moves.

Captured graphs hold the block's address, so it is allocated once. A slot belongs to the features
object that was handed out, and returns when that object is gone: the engine's picture cache decides
how long that is. Where all slots are taken, features live in host memory instead and visit a slot
of the running session for one batch.
"""

import weakref
from collections import deque
from contextlib import suppress

from amlr.kernels.arrays import Floats
from amlr.kernels.device import Device


class DeviceImage:
    """Regions of one picture in a slot of the pool."""

    __slots__ = ("__weakref__", "nbytes", "slot")

    def __init__(self, slot: int, nbytes: int) -> None:
        self.slot, self.nbytes = slot, nbytes


class HostImage:
    """Regions of one picture in host memory, for when the pool is full."""

    __slots__ = ("nbytes", "regions_pd")

    def __init__(self, regions_pd: Floats) -> None:
        self.regions_pd, self.nbytes = regions_pd, regions_pd.nbytes


class ImagePool:
    """Slots for N pictures of P regions and width D, float32.

    Attributes:
        address: Of slot 0.
        slots: N.
        shape: (N, P, D).
        slot_bytes: Of one picture.
    """

    def __init__(self, device: Device, slots: int, regions: int, width: int) -> None:
        """Allocate; the device's context must be current.

        Raises:
            DeviceMemoryError: No room.
        """
        self._device = device
        self.slots, self.shape = slots, (slots, regions, width)
        self.slot_bytes = regions * width * 4
        self.address = device.alloc(slots * self.slot_bytes)
        # Appending and popping are atomic, which a finalizer in any thread relies on.
        self._free = deque(range(slots))

    def slot_address(self, slot: int) -> int:
        """Where a slot's regions lie."""
        return self.address + slot * self.slot_bytes

    def take(self) -> DeviceImage | None:
        """A slot for a picture, or None where the pool is full."""
        try:
            slot = self._free.popleft()
        except IndexError:
            return None
        image = DeviceImage(slot, self.slot_bytes)
        weakref.finalize(image, self._free.append, slot).atexit = False
        return image

    def reserve(self, count: int) -> list[int]:
        """Slots for a session's passing pictures; fewer where the pool is small."""
        slots: list[int] = []
        # Another thread may take the last slot at any moment, so the pop itself decides.
        with suppress(IndexError):
            while len(slots) < count:
                slots.append(self._free.popleft())
        return slots

    def release(self, slots: list[int]) -> None:
        """Give reserved slots back."""
        self._free.extend(slots)

    def close(self) -> None:
        """Free the memory; the device's context must be current."""
        self._device.free(self.address)
