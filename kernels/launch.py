"""CUDA decoders on device pointers: no host synchronisation, no allocation, capturable in a graph.

Shape letters: B sequences or posts, T steps, Y tags, U units, C classes, W words of all posts.

Every pointer is an integer address of a C-contiguous device array. Nothing here checks what the
arrays hold, for that would need a synchronisation; the kernels answer NaN, +inf and malformed units
with a NaN score. Everything is loaded when an object is built, so that a launch never compiles.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amlr.errors import AmlrError, BackendUnavailableError, ShapeError
from amlr.kernels.device import Device, DeviceError, Module, Stream
from amlr.kernels.images import KernelRecord, KernelSpec, compile_image, find_images

Compile = Callable[[KernelSpec, str], bytes]

_WARP = 32
_WARPS_PER_BLOCK = 4
# What a block may have without an opt-in, on every architecture.
_SHARED_LIMIT = 48 << 10


class KernelLibrary:
    """Compiled kernels of one device, each loaded once.

    An image is looked for in this order: a cubin of the bundle, its PTX, NVRTC on the spot.
    """

    def __init__(
        self,
        device: Device,
        *,
        folder: Path | None = None,
        records: Iterable[KernelRecord] = (),
        compile_with: Compile = compile_image,
    ) -> None:
        """Prepare a library.

        Args:
            device: Where the kernels run.
            folder: A bundle's `kernels/` folder, if there is one.
            records: The manifest's `kernels` list.
            compile_with: The last resort, for an architecture such as `sm_90`.
        """
        self.device = device
        self.origins: dict[KernelSpec, str] = {}
        self._folder = folder
        self._records = tuple(records)
        self._compile = compile_with
        self._modules: dict[KernelSpec, Module] = {}
        self._lock = threading.Lock()

    def function(self, spec: KernelSpec, kernel: str) -> Any:
        """A kernel ready to launch.

        Raises:
            BackendUnavailableError: No image fits this device, and none can be made here.
        """
        with self._lock, self.device.current():
            if spec not in self._modules:
                self._modules[spec], self.origins[spec] = self._load(spec)
            return self._modules[spec].function(spec.function(kernel))

    def _load(self, spec: KernelSpec) -> tuple[Module, str]:
        refusals = []
        if self._folder is not None:
            for path in find_images(self._folder, self._records, spec, self.device.sm):
                try:
                    return self.device.load_module(path.read_bytes()), path.name
                except DeviceError as error:  # PTX that is newer than the driver, above all
                    refusals.append(f"{path.name}: {error}")
        architecture = f"sm_{self.device.sm}"
        try:
            return self.device.load_module(self._compile(spec, architecture)), "compiled here"
        except AmlrError as error:
            found = "; ".join(refusals) or "no image in the bundle's kernels/ folder fits"
            raise BackendUnavailableError(
                f"the CUDA decoder {spec.name} (Y = {spec.tags}) cannot run on {self.device.name} "
                f"({architecture}): {found}; compiling it here failed too: {error}"
            ) from error


def _launch_warps(
    library: KernelLibrary, function: Any, stream: Stream, warps: int, warp_bytes: int, *args: Any
) -> None:
    """Launch one warp per sequence, as many to a block as its shared memory holds."""
    if not warps:
        return
    if warp_bytes > _SHARED_LIMIT:
        raise ShapeError(
            f"the CUDA decoder would need {warp_bytes} bytes of shared memory per sequence, and "
            f"{_SHARED_LIMIT} are there; shorten the sequences (512 steps always fit)"
        )
    per_block = min(_WARPS_PER_BLOCK, warps, _SHARED_LIMIT // max(warp_bytes, 1))
    library.device.launch(
        function,
        grid=-(-warps // per_block),
        block=_WARP * per_block,
        shared_bytes=per_block * warp_bytes,
        stream=stream,
        arguments=args,
    )


def _pointers(*addresses: int) -> list[np.uint64]:
    return [np.uint64(address) for address in addresses]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Linear chains on the device.

    Attributes:
        emissions: (rows, Y) float32 or float16, an engine's output.
        lengths: (B,) int32, steps of each sequence, 0..max_steps.
        start: (Y,) float32.
        transitions: (Y, Y) float32, from row to column; -inf forbids.
        end: (Y,) float32.
        batch: B.
        max_steps: T, width of the tags that come out.
        rows: (B, T) int32, row of each step in `emissions`; 0: row b * row_stride + t.
        row_stride: Rows between two sequences when `rows` is 0; None: max_steps.
    """

    emissions: int
    lengths: int
    start: int
    transitions: int
    end: int
    batch: int
    max_steps: int
    rows: int = 0
    row_stride: int | None = None

    def arguments(self) -> list[Any]:
        """The kernels' first arguments."""
        stride = self.max_steps if self.row_stride is None else self.row_stride
        return [
            *_pointers(self.emissions, self.rows, self.lengths),
            *_pointers(self.start, self.transitions, self.end),
            *(np.int32(value) for value in (self.batch, self.max_steps, stride)),
        ]


class LinearKernels:
    """Linear-chain decoder and its confidence for one tag count and dtype."""

    def __init__(self, library: KernelLibrary, *, tags: int, half: bool = False) -> None:
        self._library = library
        self._tags = tags
        self._decode, self._confidence = (
            library.function(KernelSpec(source=source, tags=tags, half=half), source)
            for source in ("linear_viterbi", "linear_confidence")
        )

    def decode(
        self, stream: Stream, chains: Chains, *, tags: int, scores: int, pad_tag: int = -1
    ) -> None:
        """Enqueue `linear_viterbi`.

        Args:
            stream: Where to enqueue.
            chains: Inputs.
            tags: Out: (B, T) int32, `pad_tag` past the end and for sequences that hold NaN or +inf.
            scores: Out: (B,) float32, NaN for those sequences.
            pad_tag: Filler.
        """
        # As in the source: per survivor word one column per tag and the chosen one.
        steps_per_word = 8 if self._tags <= 16 else 6
        words = -(-chains.max_steps // steps_per_word) * (self._tags + 1)
        _launch_warps(
            self._library,
            self._decode,
            stream,
            chains.batch,
            4 * words,
            *chains.arguments(),
            np.int32(pad_tag),
            *_pointers(tags, scores),
        )

    def confidence(
        self,
        stream: Stream,
        chains: Chains,
        *,
        tags: int,
        forward: int,
        link: int,
        backward: int,
        confidence: int,
        log_total: int,
        temperature: float = 1.0,
    ) -> None:
        """Enqueue `linear_confidence` for paths that `decode` wrote.

        Args:
            stream: Where to enqueue.
            chains: Inputs.
            tags: (B, T) int32, the paths.
            forward: Out: (B, T) float32, see `link`.
            link: Out: (B, T) float32. The probability of the path's tags of steps s..e is
                exp(forward[s] + link[s+1] + ... + link[e] + backward[e]).
            backward: Out: (B, T) float32.
            confidence: Out: (B, T) float32, probability of the path's tag; 0 past the end.
            log_total: Out: (B,) float32, log of the partition sum.
            temperature: Scores are divided by it.
        """
        _launch_warps(
            self._library,
            self._confidence,
            stream,
            chains.batch,
            0,
            *chains.arguments(),
            np.float32(1 / temperature),
            *_pointers(tags, forward, link, backward, confidence, log_total),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTable:
    """Ragged units on the device.

    Attributes:
        post_offsets: (B+1,) int64.
        start: (U,) int32, first word within the post.
        end: (U,) int32, last word, inclusive, sorted within a post.
        lengths: (B,) int32, words of each post, 0..max_words.
        posts: B.
        units: U.
        classes: C.
        max_words: Words of the longest post.
        word_offsets: (B+1,) int64, words of each post; 0 where emissions play no part.
    """

    post_offsets: int
    start: int
    end: int
    lengths: int
    posts: int
    units: int
    classes: int
    max_words: int
    word_offsets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """What `segmental_viterbi` writes.

    Attributes:
        counts: (B,) int32, chosen units of each post.
        chosen: (U, 2) int32; the first counts[b] rows from post_offsets[b] on: unit, class.
        choice: (U,) int32, class of each chosen unit, -1 elsewhere.
        scores: (B,) float32, NaN where a post holds NaN, +inf or malformed units.
        owner: (W,) int32, unit that covers each word or -1; 0: not wanted.
    """

    counts: int
    chosen: int
    choice: int
    scores: int
    owner: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JointInputs:
    """An engine's raw outputs, from which joint scores are built.

    Attributes:
        logit_rows: (U,) int32, row of each unit in `logits`, -1: scored by emissions alone.
        logits: (rows, 1+C) float32 or float16, "none" first.
        emission_rows: (W,) int32, row in `emissions` of each word's first step.
        emissions: (rows, Y) of the same dtype.
        columns: (1+2C,) int32, columns of O, the B-tags and the I-tags.
        bias: b.
        weight: w; 0 reads no emissions.
    """

    logit_rows: int
    logits: int
    emission_rows: int
    emissions: int
    columns: int
    bias: float
    weight: float


class SegmentalKernels:
    """Segmental and joint decoder for one tag count and dtype."""

    def __init__(self, library: KernelLibrary, *, tags: int, half: bool = False) -> None:
        self._library = library
        spec = KernelSpec(source="segmental_viterbi", tags=tags, half=half)
        self._decode = library.function(spec, "segmental_viterbi")
        self._certify = library.function(spec, "segmental_certify")
        self._box = library.function(spec, "box_scores")
        self._joint = library.function(spec, "joint_scores")
        self._joint_box = library.function(spec, "joint_box_scores")

    def joint_scores(
        self, stream: Stream, table: UnitTable, inputs: JointInputs, *, scores: int
    ) -> None:
        """Enqueue `joint_scores`; `scores` receives g, (U, C) float32."""
        self._launch_posts(
            self._joint,
            stream,
            table,
            *self._joint_arguments(table, inputs),
            np.int32(table.classes),
            np.float32(inputs.bias),
            np.float32(inputs.weight),
            *_pointers(scores),
        )

    def decode(self, stream: Stream, table: UnitTable, winner: Winner, *, scores: int) -> None:
        """Enqueue `segmental_viterbi` on `scores`, (U, C) float32."""
        _launch_warps(
            self._library,
            self._decode,
            stream,
            table.posts,
            _workspace_bytes(table.max_words, 4),
            *_pointers(table.post_offsets, table.start, table.end, scores, table.lengths),
            *_pointers(table.word_offsets),
            *(np.int32(value) for value in (table.posts, table.classes, table.max_words)),
            *_pointers(winner.counts, winner.chosen, winner.choice, winner.owner, winner.scores),
        )

    def box_scores(
        self,
        stream: Stream,
        table: UnitTable,
        winner: Winner,
        *,
        scores: int,
        worst: int,
        radius: float = 0.0,
        radii: int = 0,
    ) -> None:
        """Enqueue `box_scores`: the worst case for the winner within independent radii of g.

        Args:
            stream: Where to enqueue.
            table: Units.
            winner: What `decode` wrote.
            scores: (U, C) float32.
            worst: Out: (U, C) float64.
            radius: One radius for all.
            radii: (U, C) float64, or 0 to use `radius`.
        """
        cells = table.units * table.classes
        if not cells:
            return
        self._library.device.launch(
            self._box,
            grid=-(-cells // 256),
            block=256,
            shared_bytes=0,
            stream=stream,
            arguments=[
                *_pointers(scores, winner.choice, radii),
                np.float64(radius),
                np.int32(table.units),
                np.int32(table.classes),
                *_pointers(worst),
            ],
        )

    def joint_box_scores(
        self,
        stream: Stream,
        table: UnitTable,
        inputs: JointInputs,
        winner: Winner,
        *,
        worst: int,
        unit_radius: float,
        tag_radius: float,
    ) -> None:
        """Enqueue `joint_box_scores`: the worst case within radii of unit logits and emissions.

        Args:
            stream: Where to enqueue.
            table: Units.
            inputs: The engine's raw outputs.
            winner: What `decode` wrote, with `owner`.
            worst: Out: (U, C) float64.
            unit_radius: Largest error of a unit logit.
            tag_radius: Largest error of an emission.
        """
        self._launch_posts(
            self._joint_box,
            stream,
            table,
            *self._joint_arguments(table, inputs),
            *_pointers(winner.choice, winner.owner),
            np.int32(table.classes),
            # As the float32 scores see them.
            np.float64(np.float32(inputs.bias)),
            np.float64(np.float32(inputs.weight)),
            np.float64(unit_radius),
            np.float64(tag_radius),
            *_pointers(worst),
        )

    def certify(
        self, stream: Stream, table: UnitTable, winner: Winner, *, worst: int, certified: int
    ) -> None:
        """Enqueue `segmental_certify`: decode the worst case; `certified` is (B,) int32, 1 or 0."""
        _launch_warps(
            self._library,
            self._certify,
            stream,
            table.posts,
            _workspace_bytes(table.max_words, 8),
            *_pointers(table.post_offsets, table.start, table.end, worst, table.lengths),
            *_pointers(winner.counts, winner.choice, winner.scores),
            *(np.int32(value) for value in (table.posts, table.classes, table.max_words)),
            *_pointers(certified),
        )

    def _joint_arguments(self, table: UnitTable, inputs: JointInputs) -> list[Any]:
        return [
            *_pointers(table.post_offsets, table.start, table.end),
            *_pointers(inputs.logit_rows, inputs.logits, table.word_offsets),
            *_pointers(inputs.emission_rows, inputs.emissions, inputs.columns),
        ]

    def _launch_posts(
        self, function: Any, stream: Stream, table: UnitTable, *arguments: Any
    ) -> None:
        if table.posts:
            self._library.device.launch(
                function,
                grid=table.posts,
                block=128,
                shared_bytes=0,
                stream=stream,
                arguments=arguments,
            )


def _workspace_bytes(max_words: int, real_bytes: int) -> int:
    """Shared memory of one warp of the segmental kernels, as their `workspace` lays it out."""
    return -(-((max_words + 33) * real_bytes + (2 * (max_words + 1) + 66) * 4) // 8) * 8
