"""Decoding on the device: from an engine's raw outputs to entities and how sure each of them is.

The logits of a run lie where the fusion engine wrote them; the CUDA decoders read them there, on
the same stream. What goes up is the layout (a few integers a unit), in one copy; what comes back is
the chosen units with their scores, in one copy. Posts whose text needs several windows are merged
on the host and decoded there.

Shape letters: B posts, U units and runs, W words of all posts, C classes, Y tags, E entities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amlr.kernels import Units, joint_scores
from amlr.kernels.device import Device, Stream
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_segmental import JointInputs, SegmentalKernels, UnitTable, Winner
from amlr.runtime.batching import Batch
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded

Ints32 = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
ALIGNMENT = 256


def has_decoder(settings: DecoderSettings) -> bool:
    """Whether this decoder runs here; the linear chain runs on the host."""
    return settings.kind in ("joint", "segmental")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How a run's outputs are strided: rows of window b start at b * units, b * tokens."""

    logits: int
    emissions: int
    units: int
    tokens: int


class Block:
    """One stretch of device memory and its pinned twin; grows when a run needs more."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._size = 0
        self._pointer = 0
        self._pinned: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)

    def lay_out(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Offsets of named parts."""
        offsets, end = {}, 0
        for name, nbytes in sizes.items():
            offsets[name] = end
            end += -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        if end > self._size:
            self.close()
            size = max(end, 2 * self._size)
            self._pinned = self._device.pinned_empty((size,), np.uint8)
            self._pointer = self._device.alloc(size)
            self._size = size
        return offsets

    def address(self, offset: int) -> int:
        """Device address of a part."""
        return self._pointer + offset

    def upload(
        self, arrays: Mapping[str, npt.NDArray[np.generic]], stream: Stream
    ) -> dict[str, int]:
        """Copy arrays up together; gives their device addresses."""
        offsets = self.lay_out({name: array.nbytes for name, array in arrays.items()})
        end = 0
        for name, array in arrays.items():
            end = offsets[name] + array.nbytes
            self._pinned[offsets[name] : end] = np.ascontiguousarray(array).view(np.uint8).ravel()
        self._device.upload(self._pointer, self._pinned[:end], stream)
        return {name: self.address(offset) for name, offset in offsets.items()}

    def download(self, start: int, end: int, stream: Stream) -> npt.NDArray[np.uint8]:
        """Copy a stretch down; valid after the stream was synchronised."""
        view = self._pinned[start:end]
        self._device.download(view, self.address(start), stream)
        return view

    def close(self) -> None:
        """Free the memory."""
        if self._size:
            self._device.free(self._pointer)
            self._size = 0


class DeviceDecoder:
    """Joint and segmental decoding for one session."""

    def __init__(
        self, library: KernelLibrary, *, labels: Sequence[str], tags: Sequence[str]
    ) -> None:
        """Load the kernels; the device's context must be current.

        Raises:
            BackendUnavailableError: No kernel image fits the device, and none can be compiled.
        """
        self._kernels = SegmentalKernels(library, tags=len(tags))
        self._labels, self._tags = tuple(labels), tuple(tags)
        self._inputs, self._outputs = Block(library.device), Block(library.device)
        column = {tag: y for y, tag in enumerate(tags)}
        order = ["O", *(f"B-{x}" for x in labels), *(f"I-{x}" for x in labels)]
        self._columns = np.array([column[tag] for tag in order], np.int32)

    def decode(
        self, batch: Batch, rows: Rows, settings: DecoderSettings, stream: Stream
    ) -> list[Decoded]:
        """Entities of each window.

        Args:
            batch: Windows that are whole posts.
            rows: Where the run's outputs are.
            settings: Bias, weight and temperature.
            stream: The run's stream; synchronised here.
        """
        weight = settings.weight if settings.kind == "joint" else 0.0
        units, words_b = self._layout(batch, weight, settings.max_entity_words)
        table, inputs = self._upload(batch, units, words_b, rows, settings.bias, weight, stream)
        posts, count, classes = len(batch), len(units.start_u), len(self._labels)
        sizes = {"counts": 4 * posts, "best": 4 * posts, "chosen": 8 * count, "sure": 4 * count}
        scratch = {"choice": 4 * count, "g": 4 * count * classes}
        at = self._outputs.lay_out(sizes | scratch)
        address = {name: self._outputs.address(offset) for name, offset in at.items()}
        self._kernels.joint_scores(stream, table, inputs, scores=address["g"])
        winner = Winner(
            counts=address["counts"],
            chosen=address["chosen"],
            choice=address["choice"],
            scores=address["best"],
        )
        self._kernels.decode(stream, table, winner, scores=address["g"])
        self._kernels.confidence(
            stream,
            table,
            winner,
            scores=address["g"],
            confidence=address["sure"],
            temperature=settings.temperature,
        )
        down = self._outputs.download(0, at["sure"] + 4 * count, stream)
        stream.synchronize()
        part = {name: down[at[name] : at[name] + size] for name, size in sizes.items()}
        best_b = part["best"].view(np.float32)
        chosen_u2, sure_u = part["chosen"].view(np.int32).reshape(-1, 2), part["sure"]
        found = []
        for first, number, best in zip(
            units.post_offsets[:-1], part["counts"].view(np.int32), best_b.tolist(), strict=True
        ):
            own = slice(first, first + number)
            unit, label = chosen_u2[own].T
            spans = np.stack([units.start_u[unit], units.end_u[unit], label], axis=1)
            scores = sure_u.view(np.float32)[own].copy()
            found.append(Decoded(entities_e3=spans.astype(np.int32), scores_e=scores, best=best))
        return found

    def _layout(
        self, batch: Batch, weight: float, max_entity_words: int
    ) -> tuple[Units, npt.NDArray[np.int64]]:
        """Units and runs in the decoder's order; only their places matter, so scores are zero."""
        words_b = np.array([len(window.first_n) for window in batch.windows], np.int64)
        total = int(words_b.sum())
        zeros = np.zeros((len(batch.scale_m), 1 + len(self._labels)), np.float32)
        units = joint_scores(
            post_offsets=batch.unit_offsets_b,
            start_u=np.concatenate([u.start_word_u for u in batch.units]),
            end_u=np.concatenate([u.end_word_u for u in batch.units]),
            unit_logits_uc=zeros,
            bias=0.0,
            weight=weight,
            word_offsets=np.concatenate([[0], np.cumsum(words_b)]),
            word_emissions_wy=np.zeros((total, len(self._tags)), np.float32),
            tags=self._tags,
            labels=self._labels,
            max_entity_words=max_entity_words,
        )
        return units, words_b

    def _upload(
        self,
        batch: Batch,
        units: Units,
        words_b: npt.NDArray[np.int64],
        rows: Rows,
        bias: float,
        weight: float,
        stream: Stream,
    ) -> tuple[UnitTable, JointInputs]:
        posts, count = len(batch), len(units.start_u)
        # Units with logits keep the batch's order, so the n-th of them is the batch's n-th unit.
        own = np.ones(count, np.bool_) if units.has_logits_u is None else units.has_logits_u
        place_m = np.arange(len(batch.scale_m)) - batch.unit_offsets_b[batch.window_m]
        logit_rows = np.full(count, -1, np.int32)
        logit_rows[own] = batch.window_m * rows.units + place_m
        first_w = [b * rows.tokens + window.first_n for b, window in enumerate(batch.windows)]
        word_offsets = np.concatenate([[0], np.cumsum(words_b)]).astype(np.int64)
        at = self._inputs.upload(
            {
                "post_offsets": units.post_offsets.astype(np.int64),
                "word_offsets": word_offsets,
                "start": units.start_u.astype(np.int32),
                "end": units.end_u.astype(np.int32),
                "lengths": words_b.astype(np.int32),
                "logit_rows": logit_rows,
                "emission_rows": np.concatenate(first_w).astype(np.int32),
                "columns": self._columns,
            },
            stream,
        )
        table = UnitTable(
            post_offsets=at["post_offsets"],
            start=at["start"],
            end=at["end"],
            lengths=at["lengths"],
            posts=posts,
            units=count,
            classes=len(self._labels),
            max_words=int(words_b.max(initial=0)),
            word_offsets=at["word_offsets"],
        )
        joint = JointInputs(
            logit_rows=at["logit_rows"],
            logits=rows.logits,
            emission_rows=at["emission_rows"],
            emissions=rows.emissions,
            columns=at["columns"],
            bias=bias,
            weight=weight,
        )
        return table, joint

    def close(self) -> None:
        """Free the memory; the device's context must be current."""
        self._inputs.close()
        self._outputs.close()
