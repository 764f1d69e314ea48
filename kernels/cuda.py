"""CUDA decoders on host arrays: what `backend="cuda"` calls.

Shape letters: B batch or posts, T steps, Y tags, U units, C classes.

Each call copies its arrays to the device and back, so it pays only for large batches; an engine
keeps its numbers on the device and launches `amlr.kernels.launch` itself. Results equal the NumPy
decoders'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import AnyArray, Floats, Indices, Ints32
from amlr.kernels.device import Device, Stream, open_device
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import Chains, LinearKernels
from amlr.kernels.launch_segmental import SegmentalKernels, UnitTable, Winner
from amlr.kernels.units import Units
from amlr.kernels.validation import (
    INF,
    Chain,
    check_chain,
    explain_bad_scores,
    raise_not_finite,
)


class DeviceWork:
    """Device memory and a stream for one call."""

    def __init__(self, device: Device) -> None:
        self.stream: Stream = device.stream()
        self._device = device
        self._pointers: list[int] = []
        self._kept: list[AnyArray] = []

    def put(self, array: AnyArray) -> int:
        """Copy an array to the device."""
        array = np.ascontiguousarray(array)
        self._kept.append(array)  # alive until the copy ran
        pointer = self.room(array)
        self._device.upload(pointer, array, self.stream)
        return pointer

    def room(self, array: AnyArray) -> int:
        """Uninitialised device memory of an array's size."""
        self._pointers.append(self._device.alloc(array.nbytes))
        return self._pointers[-1]

    def fetch(self, *outputs: tuple[AnyArray, int]) -> None:
        """Copy results back and wait for them."""
        for array, pointer in outputs:
            self._device.download(array, pointer, self.stream)
        self.stream.synchronize()

    def chains(self, chain: Chain) -> Chains:
        """Upload a checked linear chain."""
        batch, steps, _ = chain.emissions_bty.shape
        return Chains(
            emissions=self.put(chain.emissions_bty),
            lengths=self.put(chain.lengths_b.astype(np.int32)),
            start=self.put(chain.start_y),
            transitions=self.put(chain.transitions_yy),
            end=self.put(chain.end_y),
            batch=batch,
            max_steps=steps,
        )

    def table(self, units: Units, lengths_b: Indices) -> UnitTable:
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

    def fetch(self, *more: tuple[AnyArray, int]) -> None:
        """Copy everything back."""
        winner = self.winner
        self._work.fetch(
            (self.counts_b, winner.counts),
            (self.chosen_u2, winner.chosen),
            (self.scores_b, winner.scores),
            *more,
        )

    def entities(self, units: Units) -> list[Ints32]:
        """Per post (E, 3): start, end, class."""
        found = []
        for first, count in zip(units.post_offsets[:-1], self.counts_b, strict=True):
            unit, label = self.chosen_u2[first : first + count].T
            rows = (units.start_u[unit], units.end_u[unit], label)
            found.append(np.stack(rows, axis=1).astype(np.int32))
        return found


def start_decoding(
    work: DeviceWork, kernels: SegmentalKernels, units: Units, lengths: Indices
) -> tuple[UnitTable, int, SegmentalOutputs]:
    """Upload units and enqueue their decoding; the table, the scores' address, the outputs."""
    table, scores_at = work.table(units, lengths), work.put(units.scores_uc)
    outputs = SegmentalOutputs(work, len(lengths), len(units.scores_uc))
    kernels.decode(work.stream, table, outputs.winner, scores=scores_at)
    return table, scores_at, outputs


def checked_chain(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None,
) -> Chain:
    """A chain with all numbers checked that the kernels do not look at."""
    chain = check_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    # The kernels look for NaN in emissions only; these are small and seldom change.
    for part in (chain.start_y, chain.transitions_yy, chain.end_y):
        if not np.all(part < INF):
            explain_bad_scores(chain)
    return chain


class HostDecoders:
    """Decoders that take and return host arrays; threads may share one, each call has a stream."""

    def __init__(self, library: KernelLibrary, *, unit_tags: int = 1) -> None:
        """Prepare decoders.

        Args:
            library: Where the kernels come from.
            unit_tags: Y of the segmental image; any serves, as only joint scores read emissions,
                so this names the one that a bundle holds.
        """
        self.library = library
        self.unit_tags = unit_tags

    def viterbi_decode(
        self,
        emissions_bty: npt.ArrayLike,
        lengths_b: npt.ArrayLike,
        start_y: npt.ArrayLike,
        transitions_yy: npt.ArrayLike,
        end_y: npt.ArrayLike,
        allowed_yy: npt.ArrayLike | None = None,
    ) -> tuple[Ints32, Floats]:
        """As `amlr.kernels.viterbi_decode`."""
        chain = checked_chain(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
        batch, steps, tags = chain.emissions_bty.shape
        if not batch or not steps:
            return np.full((batch, steps), -1, np.int32), np.zeros(batch, np.float32)
        kernels = LinearKernels(self.library, tags=tags)
        with self.work() as work:
            tags_bt = np.empty((batch, steps), np.int32)
            scores_b = np.empty(batch, np.float32)
            tags_at, scores_at = work.room(tags_bt), work.room(scores_b)
            kernels.decode(work.stream, work.chains(chain), tags=tags_at, scores=scores_at)
            work.fetch((tags_bt, tags_at), (scores_b, scores_at))
        if not float(scores_b.max()) < INF:
            explain_bad_scores(chain)
        return tags_bt, scores_b

    def segmental_decode(
        self, units: Units, lengths_b: npt.ArrayLike
    ) -> tuple[list[Ints32], Floats]:
        """As `amlr.kernels.segmental_decode`."""
        lengths = units.check_lengths(lengths_b)
        kernels = SegmentalKernels(self.library, tags=self.unit_tags)
        with self.work() as work:
            _, _, outputs = start_decoding(work, kernels, units, lengths)
            outputs.fetch()
        if outputs.scores_b.size and not float(outputs.scores_b.max()) < INF:
            raise_not_finite("the sum of scores_uc", outputs.scores_b)
        return outputs.entities(units), outputs.scores_b

    @contextmanager
    def work(self) -> Iterator[DeviceWork]:
        """Memory and a stream for one call, with the device's context current."""
        device = self.library.device
        with device.current():
            work = DeviceWork(device)
            try:
                yield work
            finally:
                work.close()


@lru_cache(maxsize=1)
def default_decoders() -> HostDecoders:
    """Decoders on device 0 of the preferred binding, compiled at first use.

    Raises:
        BackendUnavailableError: No device, no binding or no compiler.
    """
    return HostDecoders(KernelLibrary(open_device()))
