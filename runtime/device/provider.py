"""A provider on an NVIDIA device, whichever library runs the graphs."""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from amlr.errors import AmlrError, BackendUnavailableError, PlanMismatchError
from amlr.kernels.arrays import Floats
from amlr.kernels.device import Device, DeviceError, DeviceMemoryError
from amlr.kernels.images import KernelRecord
from amlr.kernels.launch import Compile, KernelLibrary
from amlr.runtime.batching import Batch, BatchSizes, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.device.decoding import ChainDecoder, DeviceDecoder, UnitDecoder
from amlr.runtime.device.engines import DeviceEngines
from amlr.runtime.device.pool import HostImage, ImagePool
from amlr.runtime.device.preflight import RESERVED_BYTES
from amlr.runtime.device.session import Image, Session
from amlr.runtime.device.shapes import Sizes
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded
from amlr.runtime.radii import Radii
from amlr.runtime.text import TextWindow
from amlr.runtime.units import all_units

LOG = logging.getLogger("amlr.runtime")
# Steps of one run, padding counted: bounds the memory of activations.
DEVICE_TOKENS = 16_384
WAIT_S = 0.2


class DeviceProvider:
    """Serves a bundle on a device. Threads may share it: each call takes a session of its own.

    Attributes:
        name: Of the library: `tensorrt`, `tensorrt-rtx` or `onnxruntime-cuda`.
        precision: Of the graphs.
        limits: Largest shapes the graphs take.
        batch_sizes: Windows and pictures of one call that fill the device.
    """

    def __init__(
        self,
        device: Device,
        engines: DeviceEngines,
        bundle: Bundle,
        *,
        free_bytes: int,
        compile_with: Compile,
    ) -> None:
        """Allocate the picture pool and a first session, and run the usual shapes.

        Args:
            device: Open device; closed with the provider.
            engines: The bundle's graphs; closed with the provider.
            bundle: The bundle.
            free_bytes: Device memory that was free before anything was loaded.
            compile_with: Compiles decoder kernels that the bundle holds no image of.

        Raises:
            PlanMismatchError: The library refuses a graph.
            DeviceMemoryError: The device has no room.
        """
        self.name, self.precision, self.limits = engines.name, engines.precision, engines.limits
        self.batch_sizes = BatchSizes(
            windows=self.limits.posts, tokens=DEVICE_TOKENS, pictures=self.limits.pictures
        )
        self._device, self._engines, self._bundle = device, engines, bundle
        self._free_bytes, self._compile_with = free_bytes, compile_with
        self._closed = False
        self._lock = threading.Lock()
        self._free: queue.LifoQueue[Session] = queue.LifoQueue()
        self._sessions: list[Session] = []
        self._allowed = engines.most_sessions
        self._pool: ImagePool | None = None
        self._kernels: KernelLibrary | None = None
        self._decoders: dict[str, DeviceDecoder | None] = {}
        self._sizes = Sizes.of(bundle.manifest)
        try:
            with device.current():
                self._pool = self._make_pool()
                self._add_session()
            self.warm_up()
        except BaseException:
            self.close()
            raise

    def _make_pool(self) -> ImagePool:
        """As many slots as the graphs take and the memory left after weights and runs holds."""
        sizes, limits, engines = self._sizes, self.limits, self._engines
        slot = sizes.regions * sizes.width * 4
        steps = limits.posts * limits.tokens
        session = steps * sizes.width * 4 + limits.pictures * (slot + 12 * sizes.image**2)
        needed = engines.weight_bytes + engines.working_bytes + self._allowed * session
        left = self._free_bytes - RESERVED_BYTES - needed
        slots = min(limits.pool, max(0, left) // slot)
        if slots < 1:
            raise DeviceMemoryError(
                f"{self._device.name} has {self._free_bytes / 1e6:.0f} MB free; weights, working "
                f"memory and buffers need {needed / 1e6:.0f} MB and leave no room for one picture; "
                "free memory on the device, or build with a smaller profile"
            )
        return ImagePool(self._device, slots, sizes.regions, sizes.width)

    def _add_session(self) -> None:
        assert self._pool is not None
        session = Session(self._device, self._engines, self._pool, self._sizes)
        self._sessions.append(session)
        self._free.put(session)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A session for one call, on this thread, with the device's context current."""
        if self._closed:
            raise AmlrError("this provider is closed; load the bundle again")
        with self._device.current():
            with self._lock:
                if self._free.empty() and len(self._sessions) < self._allowed:
                    self._add_session()
            session = self._wait()
            try:
                yield session
            except BaseException:
                # Work that was enqueued still reads the session's buffers.
                with suppress(DeviceError):
                    session.stream.synchronize()
                raise
            finally:
                self._free.put(session)

    def _wait(self) -> Session:
        """The next free session; a provider that is closed meanwhile has none."""
        while True:
            try:
                return self._free.get(timeout=WAIT_S)
            except queue.Empty:
                if self._closed:
                    raise AmlrError(
                        "this provider was closed while the call waited; load the bundle again"
                    ) from None

    def encode_images(self, pixels_bchw: Floats) -> list[Image]:
        """Encode pictures into the pool."""
        images: list[Image] = []
        step = self.limits.pictures
        with self._session() as session:
            for start in range(0, len(pixels_bchw), step):
                images += session.encode(pixels_bchw[start : start + step])
        return images

    def score(self, batch: Batch, images: Sequence[Image | None]) -> Scores:
        """Raw logits of a batch; more windows than the graphs take go in several runs."""
        self._check(batch)
        with self._session() as session:
            runs = _split_runs(images, self.limits.posts, session.passing)
            if len(runs) == 1:
                return session.score(batch, images)
            parts = [session.score(_part_of(batch, run), images[run]) for run in runs]
        return Scores(
            unit_logits_mc=np.concatenate([part.unit_logits_mc for part in parts]),
            emissions_ny=np.concatenate([part.emissions_ny for part in parts]),
        )

    def can_decode(self, settings: DecoderSettings, *, certifies: bool = False) -> bool:
        """Whether the decoder runs on the device: kernels are there, or can be compiled."""
        if certifies and settings.kind == "linear-chain":
            return False
        return self._decoder(settings) is not None

    def decode(
        self,
        batch: Batch,
        images: Sequence[Image | None],
        settings: DecoderSettings,
        radii: Sequence[Radii | None] | None = None,
    ) -> list[Decoded]:
        """Entities of a batch whose windows are whole posts; no logit is copied back.

        Args:
            batch: As for `score`, with word-aligned units.
            images: As for `score`.
            settings: For which `can_decode` is true.
            radii: For each window those of its scores, or None: not certified.
        """
        self._check(batch)
        decoder = self._decoder(settings)
        assert decoder is not None
        decoded: list[Decoded] = []
        with self._session() as session:
            for run in _split_runs(images, self.limits.posts, session.passing):
                part = _part_of(batch, run)
                of_run = None if radii is None else radii[run]
                decoded += session.decode(part, images[run], settings, decoder, of_run)
        return decoded

    def _decoder(self, settings: DecoderSettings) -> DeviceDecoder | None:
        """The decoder that all sessions share; None where its kernels cannot run here."""
        if settings.kind not in self._decoders:
            with self._lock, self._device.current():
                try:
                    self._decoders[settings.kind] = self._make_decoder(settings)
                # Logits then come back, and the host decodes them.
                except (BackendUnavailableError, DeviceError) as error:
                    LOG.warning("entities are decoded on the host: %s", error)
                    self._decoders[settings.kind] = None
        return self._decoders[settings.kind]

    def _make_decoder(self, settings: DecoderSettings) -> DeviceDecoder:
        manifest, folder = self._bundle.manifest, self._bundle.path / "kernels"
        if self._kernels is None:
            self._kernels = KernelLibrary(
                self._device,
                folder=folder if folder.is_dir() else None,
                records=[KernelRecord.from_dict(values) for values in manifest.kernels],
                compile_with=self._compile_with,
            )
        labels, tags = manifest.labels, manifest.tags
        if settings.kind == "linear-chain":
            return ChainDecoder(self._kernels, self._bundle.decoder, labels=labels, tags=tags)
        return UnitDecoder(self._kernels, labels=labels, tags=tags)

    def _check(self, batch: Batch) -> None:
        most = int(batch.unit_counts_b.max())
        longest = int(batch.lengths_b.max())
        for what, size, limit in (
            ("steps", longest, self.limits.tokens),
            ("units", most, self.limits.units),
        ):
            if size > limit:
                raise PlanMismatchError(
                    f"a window has {size} {what}, the {self.name} graphs end at {limit}; "
                    f"{self._engines.larger}"
                )

    def warm_up(self) -> None:
        """Run the usual shapes and one picture, so that the first caller waits for nothing."""
        side = self._sizes.image
        (image,) = self.encode_images(np.zeros((1, 3, side, side), np.float32))
        for posts, tokens in self.limits.usual:
            batch = _padding_batch(posts, tokens, self._sizes)
            for _ in range(2):  # the second run captures
                self.score(batch, [image] * posts)

    @property
    def captured_graphs(self) -> int:
        """Graphs captured so far, over all sessions."""
        return sum(session.captured for session in self._sessions)

    def close(self) -> None:
        """Wait for calls under way, then free everything."""
        if self._closed:
            return
        self._closed = True
        with self._device.current():
            for _ in range(len(self._sessions)):
                self._free.get().close()
            self._sessions.clear()
            if self._pool is not None:
                self._pool.close()
            self._kernels = None
            self._engines.close()
        self._device.close()


def _padding_batch(posts: int, tokens: int, sizes: Sizes) -> Batch:
    """Windows of padding."""
    ids = np.full(tokens, sizes.pad_id, np.int64)
    nothing = np.zeros(0, np.int32)
    window = TextWindow(
        input_ids_t=ids,
        shape_ids_t=np.zeros_like(ids),
        first_n=nothing,
        last_n=nothing,
        word_start=0,
    )
    units = [all_units(tokens, 1)] * posts
    return Batch([window] * posts, units, scales=sizes.scales, pad_id=sizes.pad_id)


def _part_of(batch: Batch, run: slice) -> Batch:
    """The windows of one run."""
    return Batch(batch.windows[run], batch.units[run], scales=batch.scales, pad_id=batch.pad_id)


def _split_runs(images: Sequence[Image | None], posts: int, passing: int) -> list[slice]:
    """Split a batch by windows and by pictures that must visit a slot."""
    runs: list[slice] = []
    start = 0
    visiting: set[int] = set()
    for index, image in enumerate(images):
        is_new = isinstance(image, HostImage) and id(image) not in visiting
        if index - start == posts or (is_new and len(visiting) == passing and index > start):
            runs.append(slice(start, index))
            start, visiting = index, set()
        if isinstance(image, HostImage):
            visiting.add(id(image))
    return [*runs, slice(start, len(images))]
