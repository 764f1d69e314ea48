"""One caller's share of the device: a stream, its memory, and the runs made ready on it.

A session serves one call at a time. A run is one upload, the graphs that turn ids into scores, the
decoder, and one download, all on one stream. A run that comes back is captured in a CUDA graph and
from then on launched as a whole.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import Floats
from amlr.kernels.device import Device, DeviceMemoryError
from amlr.runtime.batching import Batch, Scores, unit_table
from amlr.runtime.device.decoding import DeviceDecoder
from amlr.runtime.device.engines import BoundGraph, DeviceEngines, LoadedGraph
from amlr.runtime.device.memory import Block, Part
from amlr.runtime.device.pool import DeviceImage, HostImage, ImagePool
from amlr.runtime.device.replay import Replay
from amlr.runtime.device.shapes import Bucket, Sizes, round_posts
from amlr.runtime.engine_record import Shape
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded
from amlr.runtime.radii import Radii

Image = DeviceImage | HostImage
# Shapes that a session keeps ready.
RUNS_KEPT = 32


@dataclass(frozen=True, slots=True)
class RunShape:
    """All that a run's memory and kernels depend on.

    Attributes:
        bucket: Windows, steps, units.
        room: Units and runs the decoder has room for; 0 where scores come back.
        settings: The decoder's; None where scores come back.
        certifies: Whether certificates come back beside entities.
    """

    bucket: Bucket
    room: int = 0
    settings: DecoderSettings | None = None
    certifies: bool = False


class Run:
    """Memory and bound graphs of one `RunShape`."""

    def __init__(
        self,
        device: Device,
        shape: RunShape,
        sizes: Sizes,
        decoder: DeviceDecoder | None,
        *,
        captures: bool,
    ) -> None:
        """Allocate; the device's context must be current.

        Raises:
            DeviceMemoryError: No room.
        """
        self.shape, self.decoder = shape, decoder
        self.graphs: list[BoundGraph] = []
        self.replay = Replay(device, str(shape.bucket), captures=captures)
        text = {n: Part(s, np.int64) for n, s in sizes.uploads(shape.bucket).items()}
        if decoder is None:
            scores = sizes.outputs(shape.bucket)
            self.inputs = Block(device, text, {})
            outputs = {name: Part(s, np.float32) for name, s in scores.items()}
            resident: Mapping[str, Part] = {}
        else:
            parts = decoder.parts(shape.bucket, shape.room, certifies=shape.certifies)
            self.inputs = Block(device, text | dict(parts.inputs), {})
            outputs, resident = dict(parts.outputs), parts.resident
        try:
            self.outputs = Block(device, outputs, resident)
        except BaseException:
            self.inputs.close()
            raise

    def close(self) -> None:
        """Free everything; nothing of the run may still be on the stream."""
        self.replay.close()
        self.graphs.clear()
        self.inputs.close()
        self.outputs.close()


class Session:
    """See the module docstring."""

    def __init__(
        self,
        device: Device,
        engines: DeviceEngines,
        pool: ImagePool,
        sizes: Sizes,
    ) -> None:
        """Load the graphs and allocate what all runs share; the device's context must be current.

        Args:
            device: The device.
            engines: The bundle's graphs in a library.
            pool: Shared pictures.
            sizes: Fixed sizes.

        Raises:
            DeviceMemoryError: No room; what was allocated is freed.
        """
        self._device, self._engines, self._pool, self._sizes = device, engines, pool, sizes
        self._limits = engines.limits
        self._ready: OrderedDict[RunShape, Run] = OrderedDict()
        self._pictures: dict[int, tuple[BoundGraph, Replay]] = {}
        self._graphs: Mapping[str, LoadedGraph] = {}
        # Tensors at addresses that stay for the life of the session, in one block.
        self._blocks: list[Block] = []
        self._at: Mapping[str, int] = {}
        self._pixels: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._passing: list[int] = []
        self.stream = device.stream()
        try:
            self._graphs = engines.load(self.stream)
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        limits, sizes = self._limits, self._sizes
        pixels = (limits.pictures, 3, sizes.image, sizes.image)
        shapes: dict[str, Shape] = {
            **sizes.outputs(Bucket(limits.posts, limits.tokens, limits.units)),
            "pixel_values": pixels,
            "regions_bpd": (limits.pictures, *self._pool.shape[1:]),
        }
        first = self._graphs[self._engines.stages[0]]
        if "hidden_btd" in first.outputs:
            shapes["hidden_btd"] = (limits.posts, limits.tokens, sizes.width)
        # Graphs of one session never run at the same time, so they share their scratch memory.
        size = max(graph.scratch_bytes for graph in self._graphs.values())
        parts = {name: Part(shape, np.float32) for name, shape in shapes.items()}
        block = Block(self._device, {}, parts | {"scratch": Part((size,), np.uint8)})
        self._blocks.append(block)
        self._at, self._scratch = block.at, (block.at["scratch"], size)
        self._pixels = self._device.pinned_empty(pixels, np.float32)
        self._passing = self._pool.reserve(min(limits.posts, max(1, self._pool.slots // 8)))

    @property
    def captured(self) -> int:
        """CUDA graphs captured so far and still ready."""
        replays = [run.replay for run in self._ready.values()]
        replays += [replay for _, replay in self._pictures.values()]
        return sum(replay.captured for replay in replays)

    @property
    def passing(self) -> int:
        """How many pictures outside the pool one run can show."""
        return len(self._passing)

    # Text and fusion -------------------------------------------------------------------------

    def score(self, batch: Batch, images: Sequence[Image | None]) -> Scores:
        """Raw logits of a batch that fits the limits."""
        run = self._run_for(RunShape(self._bucket(batch)), None)
        self._start(run, batch, images)
        self.stream.synchronize()
        rows = len(batch)
        return batch.from_padded({n: a[:rows].copy() for n, a in run.outputs.host.items()})

    def decode(
        self,
        batch: Batch,
        images: Sequence[Image | None],
        settings: DecoderSettings,
        decoder: DeviceDecoder,
        radii: Sequence[Radii | None] | None,
    ) -> list[Decoded]:
        """Entities of a batch that fits the limits; its logits never leave the device."""
        bucket = self._bucket(batch)
        room, certifies = decoder.room(batch, settings), radii is not None
        run = self._run_for(RunShape(bucket, room, settings, certifies), decoder)
        decoder.fill(run.inputs.host, batch, bucket, settings, radii)
        self._start(run, batch, images)
        self.stream.synchronize()
        return decoder.read(run.outputs.host, run.inputs.host, batch)

    def _bucket(self, batch: Batch) -> Bucket:
        most = int(batch.unit_counts_b.max())
        return self._limits.bucket(len(batch), int(batch.lengths_b.max()), most)

    def _start(self, run: Run, batch: Batch, images: Sequence[Image | None]) -> None:
        """Write the inputs and put the whole run on the stream."""
        self._fill(run.inputs.host, batch, run.shape.bucket, self._slots(images))
        run.replay.start(self.stream, lambda: self._enqueue(run))

    def _slots(self, images: Sequence[Image | None]) -> list[int]:
        """Slot of each window's picture, -1 for none; host pictures visit passing slots."""
        visiting: dict[int, int] = {}
        slots = []
        for image in images:
            if isinstance(image, HostImage):
                if id(image) not in visiting:
                    if not self._passing:
                        raise DeviceMemoryError(
                            f"the picture pool of {self._pool.slots} slots is full and has none "
                            "for passing pictures; build with a larger pool"
                        )
                    slot = self._passing[len(visiting)]
                    visiting[id(image)] = slot
                    regions = np.ascontiguousarray(image.regions_pd)
                    self._device.upload(self._pool.slot_address(slot), regions, self.stream)
                slots.append(visiting[id(image)])
            else:
                slots.append(-1 if image is None else image.slot)
        return slots

    def _fill(
        self, host: Mapping[str, npt.NDArray[Any]], batch: Batch, bucket: Bucket, slots: list[int]
    ) -> None:
        """Write a batch into pinned memory, padded to the bucket."""
        sizes, rows = self._sizes, len(batch)
        text = batch.padded_text(min_steps=bucket.tokens, shapes=sizes.shapes)
        for name, array in text.items():
            host[name][:rows] = array
            host[name][rows:] = sizes.pad_id if name == "input_ids" else 0
        table = unit_table(batch, bucket.tokens)
        host["unit_index_bs"].fill(0)
        host["unit_index_bs"][:rows, : table.shape[1]] = table
        host["slot_b"][:rows], host["slot_b"][rows:] = slots, -1

    def _enqueue(self, run: Run) -> None:
        run.inputs.upload(self.stream)
        for graph in run.graphs:
            graph.enqueue(self.stream)
        shape = run.shape
        if run.decoder is not None and shape.settings is not None:
            at = {**run.inputs.at, **run.outputs.at, **self._at}
            run.decoder.enqueue(self.stream, at, shape.bucket, shape.settings)
        run.outputs.download(self.stream)

    def _run_for(self, shape: RunShape, decoder: DeviceDecoder | None) -> Run:
        """The run of a shape; the least recently used one makes room."""
        run = self._ready.get(shape)
        if run is not None:
            self._ready.move_to_end(shape)
            return run
        while len(self._ready) >= RUNS_KEPT:
            self._ready.popitem(last=False)[1].close()
        captures = all(self._graphs[name].captures for name in self._engines.stages)
        run = Run(self._device, shape, self._sizes, decoder, captures=captures)
        try:
            run.graphs = [self._bound(name, run) for name in self._engines.stages]
        except BaseException:
            run.close()
            raise
        self._ready[shape] = run
        return run

    def _bound(self, name: str, run: Run) -> BoundGraph:
        graph, bucket = self._graphs[name], run.shape.bucket
        shapes = self._sizes.inputs(bucket, self._pool.slots) | self._sizes.outputs(bucket)
        at = {**run.inputs.at, "pool_npd": self._pool.address, **self._at}
        # Scores that come back are written where the download reads them.
        at |= {n: address for n, address in run.outputs.at.items() if n in graph.outputs}
        inputs = {tensor: shapes[tensor] for tensor in graph.inputs}
        outputs = {tensor: shapes[tensor] for tensor in graph.outputs}
        addresses = {tensor: at[tensor] for tensor in (*inputs, *outputs)}
        bound = graph.bound()
        bound.bind(inputs, outputs, addresses, self._scratch, self.stream)
        return bound

    # Pictures --------------------------------------------------------------------------------

    def encode(self, pixels_bchw: Floats) -> list[Image]:
        """Encode at most `limits.pictures` pictures, into slots while there are free ones."""
        count = len(pixels_bchw)
        rows = min(round_posts(count), self._limits.pictures)
        graph, replay = self._picture_run(rows)
        pixels = self._pixels[:rows]
        pixels[:count] = pixels_bchw
        pixels[count:] = 0

        def enqueue() -> None:
            self._device.upload(self._at["pixel_values"], pixels, self.stream)
            graph.enqueue(self.stream)

        replay.start(self.stream, enqueue)
        images: list[Image] = []
        size, source = self._pool.slot_bytes, self._at["regions_bpd"]
        for index in range(count):
            image = self._pool.take()
            if image is not None:
                target = self._pool.slot_address(image.slot)
                self._device.copy(target, source + index * size, size, self.stream)
                images.append(image)
            else:
                array = np.empty(self._pool.shape[1:], np.float32)
                self._device.download(array, source + index * size, self.stream)
                images.append(HostImage(array))
        # Other sessions read the slots on their own streams.
        self.stream.synchronize()
        return images

    def _picture_run(self, rows: int) -> tuple[BoundGraph, Replay]:
        """The image graph bound to a number of pictures."""
        if rows not in self._pictures:
            side = self._sizes.image
            pixels: dict[str, Shape] = {"pixel_values": (rows, 3, side, side)}
            regions: dict[str, Shape] = {"regions_bpd": (rows, *self._pool.shape[1:])}
            addresses = {name: self._at[name] for name in (*pixels, *regions)}
            graph = self._graphs["image"]
            bound = graph.bound()
            bound.bind(pixels, regions, addresses, self._scratch, self.stream)
            replay = Replay(self._device, f"{rows} pictures", captures=graph.captures)
            self._pictures[rows] = bound, replay
        return self._pictures[rows]

    def close(self) -> None:
        """Free everything; the device's context must be current."""
        self.stream.synchronize()
        while self._ready:
            self._ready.popitem()[1].close()
        for _, replay in self._pictures.values():
            replay.close()
        self._pictures.clear()
        self._graphs = {}
        self._pool.release(self._passing)
        self._passing = []
        self._pixels = np.zeros(0, np.float32)
        while self._blocks:
            self._blocks.pop().close()
        self.stream.close()
