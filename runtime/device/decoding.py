"""Decoding behind the engines: from raw scores on the device to entities and how sure each is.

The decoders read the scores where the fusion graph wrote them, on the same stream. What goes up is
a layout of a few integers a unit, what comes back are the chosen units with their marginals. Sizes
depend on the shape of the run alone, so that a run can be captured in a CUDA graph. Posts whose
text needs several windows are merged and decoded on the host.

Shape letters: B posts of the bucket, U units and runs it has room for, T steps, Y tags, E entities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Stream
from amlr.kernels.joint import RunLayout, lay_out_runs
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_linear import Chains, LinearKernels
from amlr.kernels.launch_segmental import JointInputs, SegmentalKernels, UnitTable, Winner
from amlr.runtime.batching import Batch
from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.decode import tag_spans
from amlr.runtime.device.memory import Part
from amlr.runtime.device.shapes import Bucket
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded
from amlr.runtime.radii import Radii

Arrays = Mapping[str, npt.NDArray[Any]]
Addresses = Mapping[str, int]
# Fewest units and runs that a run has room for; rooms double from here.
LEAST_ROOM = 256
# Radii of a post that is not to be certified.
UNCOVERED = (-1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Parts:
    """Memory a decoder needs in a run.

    Attributes:
        inputs: Goes up.
        outputs: Comes back.
        resident: Stays on the device.
    """

    inputs: Mapping[str, Part]
    outputs: Mapping[str, Part]
    resident: Mapping[str, Part]


class DeviceDecoder(Protocol):
    """One decoder on the device, for any run of any session."""

    def room(self, batch: Batch, settings: DecoderSettings) -> int:
        """Units and runs that the batch needs room for, rounded up so that few sizes occur."""

    def parts(self, bucket: Bucket, room: int, *, certifies: bool) -> Parts:
        """Memory of a run in a bucket, with the certificates' or without."""

    def fill(
        self,
        host: Arrays,
        batch: Batch,
        bucket: Bucket,
        settings: DecoderSettings,
        radii: Sequence[Radii | None] | None,
    ) -> None:
        """Write a batch's layout, and its radii where the run certifies, into pinned inputs."""

    def enqueue(
        self, stream: Stream, at: Addresses, bucket: Bucket, settings: DecoderSettings
    ) -> None:
        """Enqueue the kernels.

        Args:
            stream: The run's stream.
            at: Device addresses of the decoder's parts, `unit_logits_bsc` and `emissions_bty`.
            bucket: Shape of the run.
            settings: Bias, weight and temperature.
        """

    def read(self, host: Arrays, inputs: Arrays, batch: Batch) -> list[Decoded]:
        """Entities of each window, out of the pinned outputs and the inputs of the same run."""


class UnitDecoder:
    """Joint and segmental decoding."""

    def __init__(
        self, library: KernelLibrary, *, labels: Sequence[str], tags: Sequence[str]
    ) -> None:
        """Load the kernels; the device's context must be current.

        Raises:
            BackendUnavailableError: No kernel image fits the device, and none can be compiled.
        """
        self._kernels = SegmentalKernels(library, tags=len(tags))
        self._classes = len(labels)
        column = {tag: y for y, tag in enumerate(tags)}
        order = ["O", *(f"B-{x}" for x in labels), *(f"I-{x}" for x in labels)]
        self._columns = np.array([column[tag] for tag in order], np.int32)

    def room(self, batch: Batch, settings: DecoderSettings) -> int:
        """Units and runs, rounded up to a power of two."""
        units = len(batch.scale_m)
        if _weight(settings):
            units += sum(len(w.first_n) for w in batch.windows) * settings.max_entity_words
        return max(LEAST_ROOM, 1 << (units - 1).bit_length())

    def parts(self, bucket: Bucket, room: int, *, certifies: bool) -> Parts:
        """Memory of a run."""
        posts, words = bucket.posts, bucket.posts * bucket.tokens
        inputs = {
            "post_offsets": Part((posts + 1,), np.int64),
            "word_offsets": Part((posts + 1,), np.int64),
            "start": Part((room,), np.int32),
            "end": Part((room,), np.int32),
            "lengths": Part((posts,), np.int32),
            "logit_rows": Part((room,), np.int32),
            "emission_rows": Part((words,), np.int32),
            "columns": Part(self._columns.shape, np.int32),
        }
        outputs = {
            "counts": Part((posts,), np.int32),
            "best": Part((posts,), np.float32),
            "chosen": Part((room, 2), np.int32),
            "sure": Part((room,), np.float32),
        }
        resident = {
            "choice": Part((room,), np.int32),
            "g": Part((room, self._classes), np.float32),
        }
        if certifies:
            inputs["radii"] = Part((posts, 2), np.float64)
            outputs["certified"] = Part((posts,), np.int32)
            resident["owner"] = Part((words,), np.int32)
            resident["worst"] = Part((room, self._classes), np.float64)
        return Parts(inputs, outputs, resident)

    def fill(
        self,
        host: Arrays,
        batch: Batch,
        bucket: Bucket,
        settings: DecoderSettings,
        radii: Sequence[Radii | None] | None,
    ) -> None:
        """Write units and runs in the decoder's order; posts of padding have none."""
        posts = len(batch)
        words_b = np.array([len(window.first_n) for window in batch.windows], np.int64)
        bounds = np.concatenate([[0], np.cumsum(words_b)])
        runs = _runs(batch, bounds, settings)
        count = len(runs.start_u)
        host["post_offsets"][: posts + 1] = runs.post_offsets
        host["post_offsets"][posts + 1 :] = count
        host["word_offsets"][: posts + 1] = bounds
        host["word_offsets"][posts + 1 :] = bounds[-1]
        host["start"][:count], host["end"][:count] = runs.start_u, runs.end_u
        host["lengths"][:posts], host["lengths"][posts:] = words_b, 0
        # Units with logits keep the batch's order, so the n-th of them is the batch's n-th unit.
        place_m = np.arange(len(batch.scale_m)) - batch.unit_offsets_b[batch.window_m]
        rows = host["logit_rows"][:count]
        rows.fill(-1)
        rows[runs.has_unit_u] = batch.window_m * bucket.units + place_m
        host["emission_rows"][: bounds[-1]] = first_steps(batch, bucket)
        host["columns"][:] = self._columns
        if radii is not None:
            host["radii"][:posts] = [(r.units, r.tokens) if r else UNCOVERED for r in radii]

    def enqueue(
        self, stream: Stream, at: Addresses, bucket: Bucket, settings: DecoderSettings
    ) -> None:
        """Scores, best segmentation, marginals."""
        table = UnitTable(
            post_offsets=at["post_offsets"],
            start=at["start"],
            end=at["end"],
            lengths=at["lengths"],
            posts=bucket.posts,
            units=0,  # one block for each post
            classes=self._classes,
            max_words=bucket.tokens,
            word_offsets=at["word_offsets"],
        )
        joint = JointInputs(
            logit_rows=at["logit_rows"],
            logits=at["unit_logits_bsc"],
            emission_rows=at["emission_rows"],
            emissions=at["emissions_bty"],
            columns=at["columns"],
            bias=settings.bias,
            weight=_weight(settings),
        )
        winner = Winner(
            counts=at["counts"],
            chosen=at["chosen"],
            choice=at["choice"],
            scores=at["best"],
            owner=at.get("owner", 0),
        )
        self._kernels.joint_scores(stream, table, joint, scores=at["g"])
        self._kernels.decode(stream, table, winner, scores=at["g"])
        self._kernels.confidence(
            stream,
            table,
            winner,
            scores=at["g"],
            confidence=at["sure"],
            temperature=settings.temperature,
        )
        if "worst" in at:
            worst = at["worst"]
            self._kernels.joint_box_scores(
                stream, table, joint, winner, worst=worst, radii=at["radii"]
            )
            self._kernels.certify(stream, table, winner, worst=worst, certified=at["certified"])

    def read(self, host: Arrays, inputs: Arrays, batch: Batch) -> list[Decoded]:
        """Chosen units as words and class."""
        posts = len(batch)
        counts = host["counts"][:posts]
        ends = np.cumsum(counts)
        # The first counts[b] rows from post_offsets[b] on.
        shift = inputs["post_offsets"][:posts] - ends + counts
        rows = np.arange(int(ends[-1])) + np.repeat(shift, counts)
        unit, label = host["chosen"][rows].T
        spans = np.stack([inputs["start"][unit], inputs["end"][unit], label], axis=1)
        scores, bests, begin = host["sure"][rows], host["best"][:posts].tolist(), 0
        certified: list[bool | None] = [None] * posts
        if "certified" in host:
            covered = inputs["radii"][:posts, 0] >= 0
            certified = (covered & (host["certified"][:posts] == 1)).tolist()
        results = []
        for end, best, is_certain in zip(ends.tolist(), bests, certified, strict=True):
            own = slice(begin, end)
            results.append(
                Decoded(
                    entities_e3=spans[own], scores_e=scores[own], best=best, certified=is_certain
                )
            )
            begin = end
        return results


class ChainDecoder:
    """The linear chain over the words' first steps; its certificates are the host's."""

    def __init__(
        self,
        library: KernelLibrary,
        weights: DecoderWeights,
        *,
        labels: Sequence[str],
        tags: Sequence[str],
    ) -> None:
        """Load the kernels, as `UnitDecoder` does."""
        self._kernels = LinearKernels(library, tags=len(tags))
        self._labels, self._tags = tuple(labels), tuple(tags)
        moves = np.where(weights.allowed_yy, weights.transitions_yy, -np.inf)
        self._weights = {
            "start_y": weights.start_y,
            "transitions_yy": moves.astype(np.float32),
            "end_y": weights.end_y,
        }

    def room(self, batch: Batch, settings: DecoderSettings) -> int:
        """Steps bound everything, and the bucket knows them."""
        return LEAST_ROOM

    def parts(self, bucket: Bucket, room: int, *, certifies: bool) -> Parts:
        """Memory of a run."""
        posts, grid = bucket.posts, (bucket.posts, bucket.tokens)
        weights = {name: Part(array.shape, array.dtype) for name, array in self._weights.items()}
        return Parts(
            inputs={"lengths": Part((posts,), np.int32), "rows": Part(grid, np.int32)} | weights,
            outputs={
                "best": Part((posts,), np.float32),
                "tags": Part(grid, np.int32),
                "sure": Part(grid, np.float32),
            },
            resident={name: Part(grid, np.float32) for name in ("forward", "link", "backward")}
            | {"log_total": Part((posts,), np.float32)},
        )

    def fill(
        self,
        host: Arrays,
        batch: Batch,
        bucket: Bucket,
        settings: DecoderSettings,
        radii: Sequence[Radii | None] | None,
    ) -> None:
        """Write where each word's first step is."""
        host["lengths"].fill(0)
        for post, window in enumerate(batch.windows):
            words = len(window.first_n)
            host["lengths"][post] = words
            host["rows"][post, :words] = post * bucket.tokens + window.first_n
        for name, array in self._weights.items():
            host[name][:] = array

    def enqueue(
        self, stream: Stream, at: Addresses, bucket: Bucket, settings: DecoderSettings
    ) -> None:
        """Best path, marginals of its tags."""
        chains = Chains(
            emissions=at["emissions_bty"],
            lengths=at["lengths"],
            start=at["start_y"],
            transitions=at["transitions_yy"],
            end=at["end_y"],
            batch=bucket.posts,
            max_steps=bucket.tokens,
            rows=at["rows"],
        )
        self._kernels.decode(stream, chains, tags=at["tags"], scores=at["best"])
        self._kernels.confidence(
            stream,
            chains,
            tags=at["tags"],
            forward=at["forward"],
            link=at["link"],
            backward=at["backward"],
            confidence=at["sure"],
            log_total=at["log_total"],
        )

    def read(self, host: Arrays, inputs: Arrays, batch: Batch) -> list[Decoded]:
        """Runs of B-X I-X ... of each post."""
        results = []
        for post, window in enumerate(batch.windows):
            words = len(window.first_n)
            spans = tag_spans(
                host["tags"][post, :words], host["sure"][post, :words], self._labels, self._tags
            )
            rows = np.array([span[:3] for span in spans], np.int32).reshape(-1, 3)
            scores = np.array([span[3] for span in spans], np.float32)
            best = float(host["best"][post])
            results.append(Decoded(entities_e3=rows, scores_e=scores, best=best))
        return results


def first_steps(batch: Batch, bucket: Bucket) -> npt.NDArray[np.int64]:
    """Row of each word's first step in the run's emissions, one post after another."""
    return np.concatenate(
        [post * bucket.tokens + window.first_n for post, window in enumerate(batch.windows)]
    )


def _runs(batch: Batch, bounds: npt.NDArray[np.int64], settings: DecoderSettings) -> RunLayout:
    """Units of the batch, and with a weight the runs of words that have none."""
    start_m = np.concatenate([table.start_word_u for table in batch.units])
    end_m = np.concatenate([table.end_word_u for table in batch.units])
    extra = end_m - start_m
    most = settings.max_entity_words if _weight(settings) else 0
    longest = max(most, int(extra.max(initial=0)) + 1)
    return lay_out_runs(bounds, bounds[batch.window_m] + end_m, extra, longest, most)


def _weight(settings: DecoderSettings) -> float:
    return settings.weight if settings.kind == "joint" else 0.0
