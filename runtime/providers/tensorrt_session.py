"""One caller's share of the device: stream, buffers, contexts, captured graphs.

A session serves one call at a time. Everything between the upload of ids and the download of scores
is enqueued on one stream: text engine, fusion engine, copies through pinned memory. Buffers are
allocated once for the largest shape, so every bucket finds them at the same address, as captured
graphs need.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.device import Device, DeviceMemoryError, Graph
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded
from amlr.runtime.providers.tensorrt_buffers import Buffers
from amlr.runtime.providers.tensorrt_decode import DeviceDecoder, Rows
from amlr.runtime.providers.tensorrt_engines import Context, LoadedEngine
from amlr.runtime.providers.tensorrt_pool import DeviceImage, HostImage, ImagePool
from amlr.runtime.providers.tensorrt_shapes import Bucket, Limits, Sizes

Floats = npt.NDArray[np.float32]
# A bucket is captured when it comes back: capturing costs more than one run saves.
CAPTURE_AT = 2
TEXT_INPUTS = ("input_ids", "attention_mask", "shape_ids")


@dataclass(slots=True)
class Ready:
    """Contexts bound to one bucket, and its graphs once captured: with and without the download."""

    text: Context
    fusion: Context
    runs: int = 0
    graphs: dict[bool, Graph] = field(default_factory=dict)


class Session:
    """See the module docstring."""

    def __init__(
        self,
        device: Device,
        engines: Mapping[str, LoadedEngine],
        pool: ImagePool,
        limits: Limits,
        sizes: Sizes,
        *,
        graphs: int,
        own_graphs: bool,
        cache: Any = None,
    ) -> None:
        """Allocate everything; the device's context must be current.

        Args:
            device: The device.
            engines: `text`, `image`, `fusion`.
            pool: Shared pictures.
            limits: Largest shapes.
            sizes: Fixed sizes.
            graphs: Buckets kept ready, least recently used first out; each owns its contexts.
            own_graphs: TensorRT-RTX captures graphs itself.
            cache: TensorRT-RTX's runtime cache.

        Raises:
            DeviceMemoryError: No room; what was allocated is freed.
        """
        self._device, self._engines, self._pool = device, engines, pool
        self._limits, self._sizes = limits, sizes
        self._keep, self._own_graphs, self._cache = max(1, graphs), own_graphs, cache
        self._ready: OrderedDict[Bucket, Ready] = OrderedDict()
        self._image: Context | None = None
        self._decoder: DeviceDecoder | None = None
        self._buffers = Buffers(device)
        self._passing: list[int] = []
        self.captured = 0
        self.stream = device.stream()
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        limits, sizes, buffers = self._limits, self._sizes, self._buffers
        steps, units = limits.posts * limits.tokens, limits.posts * limits.units
        for name in TEXT_INPUTS if sizes.shapes else TEXT_INPUTS[:2]:
            buffers.add(name, steps, np.int64)
        buffers.add("unit_index_bs", units, np.int64)
        buffers.add("slot_b", limits.posts, np.int64)
        buffers.add("unit_logits_bsc", units * sizes.classes, np.float32)
        buffers.add("emissions_bty", steps * sizes.tags, np.float32)
        buffers.add("pixel_values", limits.pictures * 3 * sizes.image**2, np.float32)
        buffers.add_device("hidden_btd", steps * sizes.width * 4)
        buffers.add_device("regions_bpd", limits.pictures * self._pool.slot_bytes)
        buffers.at["pool_npd"] = self._pool.address
        # Contexts of one session never run at the same time, so they share their scratch memory.
        size = max(engine.scratch_bytes for engine in self._engines.values())
        self._scratch = (buffers.add_device("scratch", size), size)
        self._passing = self._pool.reserve(min(limits.posts, max(1, self._pool.slots // 8)))

    @property
    def passing(self) -> int:
        """How many pictures outside the pool one run can show."""
        return len(self._passing)

    # Text and fusion -------------------------------------------------------------------------

    def score(self, batch: Batch, images: Sequence[DeviceImage | HostImage | None]) -> Scores:
        """Raw logits of a batch that fits the limits."""
        bucket = self._bucket(batch)
        self._fill(batch, bucket, self._slots(images))
        self._run(bucket, fetch=True)
        self.stream.synchronize()
        outputs = {
            name: self._buffers.view(name, shape)[: len(batch)].copy()
            for name, shape in self._sizes.outputs(bucket).items()
        }
        return batch.from_padded(outputs)

    def decode(
        self,
        batch: Batch,
        images: Sequence[DeviceImage | HostImage | None],
        settings: DecoderSettings,
        make_decoder: Callable[[], DeviceDecoder],
    ) -> list[Decoded]:
        """Entities of a batch that fits the limits; its logits never leave the device."""
        if self._decoder is None:
            self._decoder = make_decoder()
        bucket = self._bucket(batch)
        self._fill(batch, bucket, self._slots(images))
        self._run(bucket, fetch=False)
        rows = Rows(
            logits=self._buffers.at["unit_logits_bsc"],
            emissions=self._buffers.at["emissions_bty"],
            units=bucket.units,
            tokens=bucket.tokens,
        )
        return self._decoder.decode(batch, rows, settings, self.stream)

    def _bucket(self, batch: Batch) -> Bucket:
        most = int(np.diff(batch.unit_offsets_b).max())
        return self._limits.bucket(len(batch), int(batch.lengths_b.max()), most)

    def _slots(self, images: Sequence[DeviceImage | HostImage | None]) -> list[int]:
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

    def _fill(self, batch: Batch, bucket: Bucket, slots: list[int]) -> None:
        """Write a batch into pinned memory, padded to the bucket."""
        sizes, rows = self._sizes, len(batch)
        feed: dict[str, npt.NDArray[Any]] = dict(
            batch.padded_text(min_steps=bucket.tokens, shapes=sizes.shapes)
        )
        # Only the number of steps matters here; the hidden states are made on the device.
        nothing = np.zeros((1, bucket.tokens, 0), np.float32)
        table = batch.padded_fusion(nothing, nothing, np.zeros(0, np.int64))["unit_index_bs"]
        feed["unit_index_bs"] = table
        feed["slot_b"] = np.asarray(slots, np.int64)
        for name, shape in self._sizes.inputs(bucket, self._pool.slots).items():
            if name not in feed:
                continue
            target, source = self._buffers.view(name, shape), feed[name]
            target.fill({"input_ids": sizes.pad_id, "slot_b": -1}.get(name, 0))
            if source.ndim == 1:
                target[:rows] = source
            else:
                target[:rows, : source.shape[1]] = source

    def _run(self, bucket: Bucket, *, fetch: bool) -> None:
        ready = self._bound(bucket)
        ready.runs += 1
        graph = ready.graphs.get(fetch)
        if graph is None and ready.runs >= CAPTURE_AT and not self._own_graphs:
            # The first run was the warm enqueue that a capture needs after a change of shape.
            with self._device.capture(self.stream) as graph:
                self._enqueue(bucket, ready, fetch=fetch)
            ready.graphs[fetch] = graph
            self.captured += 1
        if graph is not None:
            graph.launch(self.stream)
        else:
            self._enqueue(bucket, ready, fetch=fetch)

    def _enqueue(self, bucket: Bucket, ready: Ready, *, fetch: bool) -> None:
        for name, shape in self._sizes.inputs(bucket, self._pool.slots).items():
            if self._buffers.crosses(name):
                self._buffers.upload(name, shape, self.stream)
        ready.text.enqueue(self.stream)
        ready.fusion.enqueue(self.stream)
        if fetch:
            for name, shape in self._sizes.outputs(bucket).items():
                self._buffers.download(name, shape, self.stream)

    def _bound(self, bucket: Bucket) -> Ready:
        """Contexts bound to a bucket; the least recently used bucket makes room."""
        ready = self._ready.get(bucket)
        if ready is not None:
            self._ready.move_to_end(bucket)
            return ready
        while len(self._ready) >= self._keep:
            _drop(self._ready.popitem(last=False)[1])
        made = {
            name: self._engines[name].context(own_graph=self._own_graphs, cache=self._cache)
            for name in ("text", "fusion")
        }
        inputs, outputs = self._sizes.inputs(bucket, self._pool.slots), self._sizes.outputs(bucket)
        text = {name: shape for name, shape in inputs.items() if name in TEXT_INPUTS}
        fusion = {n: s for n, s in inputs.items() if n not in text}
        made["text"].bind(text, self._addresses([*text, "hidden_btd"]), self._scratch, self.stream)
        made["fusion"].bind(
            fusion, self._addresses([*fusion, *outputs]), self._scratch, self.stream
        )
        ready = self._ready[bucket] = Ready(made["text"], made["fusion"])
        return ready

    def _addresses(self, names: Sequence[str]) -> dict[str, int]:
        return {name: self._buffers.at[name] for name in names}

    # Pictures --------------------------------------------------------------------------------

    def encode(self, pixels_bchw: Floats) -> list[DeviceImage | HostImage]:
        """Encode at most `limits.pictures` pictures, into slots while there are free ones."""
        count, side = len(pixels_bchw), self._sizes.image
        shape = (count, 3, side, side)
        if self._image is None:
            self._image = self._engines["image"].context(cache=self._cache)
        addresses = self._addresses(["pixel_values", "regions_bpd"])
        self._image.bind({"pixel_values": shape}, addresses, self._scratch, self.stream)
        self._buffers.view("pixel_values", shape)[:] = pixels_bchw
        self._buffers.upload("pixel_values", shape, self.stream)
        self._image.enqueue(self.stream)
        images: list[DeviceImage | HostImage] = []
        size, source = self._pool.slot_bytes, self._buffers.at["regions_bpd"]
        for index in range(count):
            image = self._pool.take()
            if image is not None:
                target = self._pool.slot_address(image.slot)
                self._device.copy(target, source + index * size, size, self.stream)
                images.append(image)
            else:
                regions = np.empty(self._pool.shape[1:], np.float32)
                self._device.download(regions, source + index * size, self.stream)
                images.append(HostImage(regions))
        # Other sessions read the slots on their own streams.
        self.stream.synchronize()
        return images

    def close(self) -> None:
        """Free everything; the device's context must be current."""
        self.stream.synchronize()
        while self._ready:
            _drop(self._ready.popitem()[1])
        self._image = None
        if self._decoder is not None:
            self._decoder.close()
        self._pool.release(self._passing)
        self._passing = []
        self._buffers.close()
        self.stream.close()


def _drop(ready: Ready) -> None:
    for graph in ready.graphs.values():
        graph.close()
