"""Device memory, copies and results of one call of the host functions in `amlr.kernels.cuda`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Device, Stream
from amlr.kernels.launch_linear import Chains
from amlr.kernels.launch_segmental import UnitTable, Winner
from amlr.kernels.units import Units
from amlr.kernels.validation import Chain


class DeviceWork:
    """Device memory and a stream for one call."""

    def __init__(self, device: Device) -> None:
        self.stream: Stream = device.stream()
        self._device = device
        self._pointers: list[int] = []
        self._kept: list[npt.NDArray[Any]] = []

    def put(self, array: npt.NDArray[Any]) -> int:
        """Copy an array to the device."""
        array = np.ascontiguousarray(array)
        self._kept.append(array)  # alive until the copy ran
        pointer = self.room(array)
        self._device.upload(pointer, array, self.stream)
        return pointer

    def room(self, array: npt.NDArray[Any]) -> int:
        """Uninitialised device memory of an array's size."""
        self._pointers.append(self._device.alloc(array.nbytes))
        return self._pointers[-1]

    def fetch(self, *outputs: tuple[npt.NDArray[Any], int]) -> None:
        """Copy results back and wait for them."""
        for array, pointer in outputs:
            self._device.download(array, pointer, self.stream)
        self.stream.synchronize()

    def chains(self, chain: Chain, emissions_bty: npt.NDArray[Any]) -> Chains:
        """Upload a checked linear chain."""
        batch, steps, _ = emissions_bty.shape
        return Chains(
            emissions=self.put(emissions_bty),
            lengths=self.put(chain.lengths_b.astype(np.int32)),
            start=self.put(chain.start_y),
            transitions=self.put(chain.transitions_yy),
            end=self.put(chain.end_y),
            batch=batch,
            max_steps=steps,
        )

    def table(self, units: Units, lengths_b: npt.NDArray[np.intp]) -> UnitTable:
        """Upload the layout of checked units."""
        return UnitTable(
            post_offsets=self.put(units.post_offsets.astype(np.int64)),
            start=self.put(units.start_u.astype(np.int32)),
            end=self.put(units.end_u.astype(np.int32)),
            lengths=self.put(lengths_b.astype(np.int32)),
            posts=len(lengths_b),
            units=len(units.start_u),
            classes=units.scores_uc.shape[1],
            max_words=int(lengths_b.max(initial=0)),
        )

    def close(self) -> None:
        """Wait, then free everything."""
        self.stream.synchronize()
        for pointer in self._pointers:
            self._device.free(pointer)
        self.stream.close()


class SegmentalOutputs:
    """Host and device side of what `segmental_viterbi` writes."""

    def __init__(self, work: DeviceWork, posts: int, units: int) -> None:
        self._work = work
        self.counts_b = np.zeros(posts, np.int32)
        self.chosen_u2 = np.zeros((units, 2), np.int32)
        self.scores_b = np.zeros(posts, np.float32)
        self.winner = Winner(
            counts=work.room(self.counts_b),
            chosen=work.put(self.chosen_u2),  # the kernel writes chosen units only
            choice=work.room(np.empty(units, np.int32)),
            scores=work.room(self.scores_b),
        )

    def fetch(self, *more: tuple[npt.NDArray[Any], int]) -> None:
        """Copy everything back."""
        winner = self.winner
        self._work.fetch(
            (self.counts_b, winner.counts),
            (self.chosen_u2, winner.chosen),
            (self.scores_b, winner.scores),
            *more,
        )

    def entities(self, units: Units) -> list[npt.NDArray[np.int32]]:
        """Per post (E, 3): start, end, class."""
        found = []
        for first, count in zip(units.post_offsets[:-1], self.counts_b, strict=True):
            unit, label = self.chosen_u2[first : first + count].T
            rows = (units.start_u[unit], units.end_u[unit], label)
            found.append(np.stack(rows, axis=1).astype(np.int32))
        return found
