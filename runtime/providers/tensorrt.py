"""Providers `tensorrt` and `tensorrt-rtx`: device-resident from ids to scores.

Not run on a GPU by this project's own tests: they run it on doubles of the driver and the engine,
which prove the plumbing and none of TensorRT's semantics.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import AmlrError, BackendUnavailableError
from amlr.kernels.device import DeviceError, DeviceMemoryError
from amlr.kernels.images import KernelRecord
from amlr.kernels.launch import KernelLibrary
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine_record import GRAPHS
from amlr.runtime.manifest import DecoderSettings, Variant
from amlr.runtime.providers.base import Decoded, ProviderOptions
from amlr.runtime.providers.tensorrt_decode import DeviceDecoder, has_decoder
from amlr.runtime.providers.tensorrt_engines import LoadedEngine
from amlr.runtime.providers.tensorrt_pool import DeviceImage, HostImage, ImagePool
from amlr.runtime.providers.tensorrt_runs import part_of, split_runs, usual_batch
from amlr.runtime.providers.tensorrt_session import Session
from amlr.runtime.providers.tensorrt_shapes import Limits, Sizes
from amlr.runtime.refusals import RESERVED_BYTES, Host, HostTools, check_host, open_runtime
from amlr.runtime.tensorrt_library import Family

LOG = logging.getLogger("amlr.runtime")
Floats = npt.NDArray[np.float32]
# One call at a time fills a device; a second hides its copies and host work.
SESSIONS = 2
GRAPHS_KEPT = 16
WAIT_S = 0.2


def open_tensorrt(bundle: Bundle, variant: Variant, options: ProviderOptions) -> "TensorRtProvider":
    """Serve with enterprise TensorRT; raises as `check_host`."""
    return open_family("tensorrt", bundle, variant, options)


def open_tensorrt_rtx(
    bundle: Bundle, variant: Variant, options: ProviderOptions
) -> "TensorRtProvider":
    """Serve with TensorRT-RTX; raises as `check_host`."""
    return open_family("tensorrt-rtx", bundle, variant, options)


def open_family(
    family: Family,
    bundle: Bundle,
    variant: Variant,
    options: ProviderOptions,
    tools: HostTools | None = None,
) -> "TensorRtProvider":
    """Check the machine, then load and warm up."""
    host = check_host(bundle, family, variant.precision, tools)
    provider = TensorRtProvider(host, bundle, options)
    try:
        provider.warm_up()
    except BaseException:
        provider.close()
        raise
    return provider


class TensorRtProvider:
    """Runs a bundle's engines. Threads may share it: each call takes a session of its own.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        precision: Of the engines.
        limits: Largest shapes the engines take.
    """

    def __init__(
        self,
        host: Host,
        bundle: Bundle,
        options: ProviderOptions,
        *,
        sessions: int = SESSIONS,
        graphs: int = GRAPHS_KEPT,
    ) -> None:
        """Load the engines and allocate the picture pool and a first session.

        Args:
            host: From `check_host`; closed with the provider.
            bundle: The bundle.
            options: Where caches may be kept.
            sessions: Most calls on the device at a time.
            graphs: Captured shapes a session keeps.

        Raises:
            PlanMismatchError: A plan is refused by the library.
            DeviceMemoryError: The device has no room.
        """
        self.name, self.precision = host.record.library, host.record.precision
        self._host, self._bundle = host, bundle
        self._graphs = graphs
        self._closed = False
        self._lock = threading.Lock()
        self._free: queue.LifoQueue[Session] = queue.LifoQueue()
        self._sessions: list[Session] = []
        self._allowed = sessions
        self._pool: ImagePool | None = None
        self._kernels: KernelLibrary | None = None
        self._has_kernels: bool | None = None
        self._cache_file = _cache_file(options, host) if host.library.is_rtx else None
        self.limits = Limits.of(host.record)
        self._sizes = Sizes.of(bundle.manifest)
        try:
            with host.device.current():
                runtime = open_runtime(host.library)
                self._engines = {n: LoadedEngine(host, runtime, bundle.path, n) for n in GRAPHS}
                self._cache = self._load_cache()
                self._pool = self._make_pool()
                self._add_session()
        except BaseException:
            self.close()
            raise

    def _make_pool(self) -> ImagePool:
        """As many slots as the profile takes and the memory left after plans and sessions holds."""
        sizes = self._sizes
        slot = sizes.regions * sizes.width * 4
        record = self._host.record
        plans = sum(engine.bytes for engine in record.graphs.values())
        scratch = max(engine.scratch_bytes for engine in self._engines.values())
        steps = self.limits.posts * self.limits.tokens
        buffers = steps * sizes.width * 4 + self.limits.pictures * (slot + 12 * sizes.image**2)
        left = self._host.free_bytes - RESERVED_BYTES - plans - self._allowed * (scratch + buffers)
        slots = min(self.limits.pool, max(0, left) // slot)
        if slots < 1:
            raise DeviceMemoryError(
                f"{self._host.device.name} has {self._host.free_bytes / 1e6:.0f} MB free; plans, "
                f"scratch and buffers need {(plans + scratch + buffers) / 1e6:.0f} MB and leave no "
                "room for one picture; free memory, or build with a smaller profile"
            )
        return ImagePool(self._host.device, slots, sizes.regions, sizes.width)

    def _add_session(self) -> None:
        assert self._pool is not None
        session = Session(
            self._host.device,
            self._engines,
            self._pool,
            self.limits,
            self._sizes,
            graphs=self._graphs,
            own_graphs=self._host.library.is_rtx,
            cache=self._cache,
        )
        self._sessions.append(session)
        self._free.put(session)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A session for one call, on this thread, with the device's context current."""
        if self._closed:
            raise AmlrError("this provider is closed; load the bundle again")
        with self._host.device.current():
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

    def encode_images(self, pixels_bchw: Floats) -> list[DeviceImage | HostImage]:
        """Encode pictures into the pool."""
        images: list[DeviceImage | HostImage] = []
        step = self.limits.pictures
        with self._session() as session:
            for start in range(0, len(pixels_bchw), step):
                images += session.encode(pixels_bchw[start : start + step])
        return images

    def score(self, batch: Batch, images: Sequence[DeviceImage | HostImage | None]) -> Scores:
        """Raw logits of a batch; more windows than the profile takes go in several runs."""
        self._check(batch)
        with self._session() as session:
            runs = split_runs(images, self.limits.posts, session.passing)
            if len(runs) == 1:
                return session.score(batch, images)
            parts = [session.score(part_of(batch, run), images[run]) for run in runs]
        return Scores(
            unit_logits_mc=np.concatenate([part.unit_logits_mc for part in parts]),
            emissions_ny=np.concatenate([part.emissions_ny for part in parts]),
        )

    def can_decode(self, settings: DecoderSettings) -> bool:
        """Whether the decoder runs on the device: kernels are there, or can be compiled."""
        if not has_decoder(settings):
            return False
        if self._has_kernels is None:
            try:
                with self._host.device.current():
                    self._new_decoder().close()
                self._has_kernels = True
            # Logits then come back, and the host decodes them.
            except (BackendUnavailableError, DeviceError) as error:
                LOG.warning("entities are decoded on the host: %s", error)
                self._has_kernels = False
        return self._has_kernels

    def decode(
        self,
        batch: Batch,
        images: Sequence[DeviceImage | HostImage | None],
        settings: DecoderSettings,
    ) -> list[Decoded]:
        """Entities of a batch whose windows are whole posts; no logit is copied back.

        Args:
            batch: As for `score`, with word-aligned units.
            images: As for `score`.
            settings: A joint or segmental decoder.

        Raises:
            BackendUnavailableError: The decoder's kernels fit no image and cannot be compiled.
        """
        self._check(batch)
        found: list[Decoded] = []
        with self._session() as session:
            for run in split_runs(images, self.limits.posts, session.passing):
                part = part_of(batch, run)
                found += session.decode(part, images[run], settings, self._new_decoder)
        return found

    def _new_decoder(self) -> DeviceDecoder:
        manifest = self._bundle.manifest
        with self._lock:
            if self._kernels is None:
                records = [KernelRecord(**values) for values in manifest.kernels]
                folder = self._bundle.path / "kernels"
                self._kernels = KernelLibrary(
                    self._host.device,
                    folder=folder if folder.is_dir() else None,
                    records=records,
                    compile_with=self._host.compile_with,
                )
        return DeviceDecoder(self._kernels, labels=manifest.labels, tags=manifest.tags)

    def _check(self, batch: Batch) -> None:
        most = int(np.diff(batch.unit_offsets_b).max())
        longest = int(batch.lengths_b.max())
        self.limits.check(self._host.record, str(self._bundle.path), longest, most)

    def warm_up(self) -> None:
        """Run the most usual shape and one picture, so that the first caller waits for nothing."""
        side = self._sizes.image
        (image,) = self.encode_images(np.zeros((1, 3, side, side), np.float32))
        batch = usual_batch(self._host.record, self._sizes)
        for _ in range(2):  # the second run captures
            self.score(batch, [image] * len(batch))

    @property
    def captured_graphs(self) -> int:
        """Graphs captured so far, over all sessions."""
        return sum(session.captured for session in self._sessions)

    def close(self) -> None:
        """Wait for calls under way, then free everything."""
        if self._closed:
            return
        self._closed = True
        with self._host.device.current():
            for _ in range(len(self._sessions)):
                self._free.get().close()
            self._sessions.clear()
            self._save_cache()
            if self._pool is not None:
                self._pool.close()
            self._engines = {}
        self._host.device.close()

    def _load_cache(self) -> Any:
        """TensorRT-RTX compiles kernels on the device; the cache spares the next start that."""
        if self._cache_file is None:
            return None
        cache = self._engines["text"].runtime_cache()
        if self._cache_file.is_file():
            # A cache of another driver or device is refused by the library, and rewritten.
            cache.deserialize(self._cache_file.read_bytes())
        return cache

    def _save_cache(self) -> None:
        cache = getattr(self, "_cache", None)
        if cache is None or self._cache_file is None:
            return
        self._cache_file.parent.mkdir(parents=True, exist_ok=True)
        part = self._cache_file.with_suffix(".partial")
        part.write_bytes(bytes(cache.serialize()))
        part.replace(self._cache_file)


def _cache_file(options: ProviderOptions, host: Host) -> Path | None:
    if options.cache_dir is None:
        return None
    return options.cache_dir / f"{host.library.name}-sm{host.device.sm}.runtime-cache"
