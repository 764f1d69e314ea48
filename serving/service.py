"""The engine with its queue, workers, admission and metrics: what every HTTP route stands on.

It knows nothing of HTTP, so other front doors (Ray Serve, plain threads) use it as it is.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from amlr import __version__
from amlr.errors import AmlrError
from amlr.runtime.results import Post
from amlr.serving.costs import CostModel
from amlr.serving.jobs import Job, RefusedError, TaggingEngine
from amlr.serving.metrics import Metrics, cache_metrics, certificate_metrics, gauge
from amlr.serving.queue import Admission, JobQueue
from amlr.serving.settings import ServerSettings
from amlr.serving.warmup import measure
from amlr.serving.workers import BatchReport, WorkerPool

LOG = logging.getLogger("amlr.serving.service")
_FAILURES_UNTIL_UNREADY = 3
_PROBE_EVERY_S = 1.0
# Full batches that may wait before a stream stops adding to them.
_STREAM_SHARE = 2


NOT_STARTED = (
    "the service was never started, because the application's lifespan did not run; an application "
    "that mounts it must enter app.router.lifespan_context(app) in its own lifespan"
)


class State(StrEnum):
    """Life of a service."""

    NOT_STARTED = "not_started"
    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    STOPPING = "stopping"


class TaggingService(Collector):
    """Accepts posts from any thread and answers them through futures.

    Attributes:
        engine: The engine.
        settings: Settings.
        metrics: Metrics.
        queue: Waiting posts.
        costs: Expected times.
        finished: Whether everything accepted was finished before the end.
    """

    def __init__(self, engine: TaggingEngine, settings: ServerSettings | None = None) -> None:
        """Prepare; `start` begins."""
        self.engine = engine
        self.settings = settings or ServerSettings()
        self.metrics = Metrics()
        self.costs = CostModel()
        batch = self.settings.batch
        self.queue = JobQueue(self.settings.queue, batch)
        self.pool = WorkerPool(
            engine,
            self.queue,
            self.costs,
            workers=batch.workers,
            stuck_s=batch.stuck_s,
            report=self._on_batch,
            replaced=self.metrics.replaced.inc,
        )
        self.admission = Admission(
            self.settings.queue, self.costs, self.queue, lambda: self.pool.in_flight_s
        )
        self.reason: str | None = None
        self.finished = False
        self._state = State.NOT_STARTED
        self._failures = 0
        self._also: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep_ready, name="amlr-keeper", daemon=True)
        self.metrics.registry.register(self)

    # Life --------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the service."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether it should be sent requests."""
        return self._state is State.READY

    @property
    def model_name(self) -> str:
        """Name of the bundle."""
        return str(getattr(getattr(self.engine, "manifest", None), "name", "amlr"))

    def start(self, also: Callable[[], None] = lambda: None) -> None:
        """Start the workers; warm up in the background and then say ready.

        Args:
            also: Further warming up, part of being ready.
        """
        self._also = also
        self._enter(State.STARTING)
        self.pool.start()
        if not self.settings.warm_up:
            self._enter(State.READY)
        self._keeper.start()

    def stop(self) -> bool:
        """Refuse new posts, finish accepted ones, stop the threads.

        Returns:
            Whether everything accepted was finished within `shutdown_s`.
        """
        self.begin_stopping()
        self._stop.set()
        self.queue.close()
        finished = self.pool.stop(self.settings.shutdown_s)
        if self._keeper.is_alive():
            # A thread still inside native code while the interpreter ends would abort the process.
            self._keeper.join(self.settings.shutdown_s)
        self.finished = finished and not self._keeper.is_alive()
        return self.finished

    def begin_stopping(self) -> None:
        """Turn unready, so that balancers look elsewhere, while requests are still served."""
        with self._lock:
            self._state = State.STOPPING
        self.metrics.ready.set(0)

    def _enter(self, state: State, reason: str | None = None) -> None:
        with self._lock:
            if self._state is State.STOPPING:
                return
            self._state, self.reason = state, reason
        self.metrics.ready.set(state is State.READY)
        LOG.info("service is %s", state, extra={"reason": reason})

    # Work --------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse early what `submit` would refuse whatever the load.

        Raises:
            RefusedError: Not started, starting or stopping.
        """
        if self._state is State.NOT_STARTED:
            raise RefusedError("not_started", NOT_STARTED, 1.0)
        if self._state is State.STARTING:
            raise RefusedError("starting", "the engine is warming up; try again soon", 1.0)
        if self.queue.closed:
            raise RefusedError("stopping", "the server is stopping; ask another one", 1.0)

    def submit(
        self,
        posts: Sequence[Post],
        deadline_s: float | None = None,
        *,
        since: float | None = None,
        reserved: int = 0,
        is_stream: bool = False,
    ) -> list[Job]:
        """Queue posts; every job's `future` gives an `Answer`, and cancelling it drops the post.

        Args:
            posts: Pictures as bytes or None: a path would let clients read this machine's files.
            deadline_s: Seconds in which the answers are of use.
            since: From when they count, by `time.monotonic`; None counts from now.
            reserved: Bytes already counted by `queue.reserve` for these posts.
            is_stream: Whether the posts come from a stream, which tries again by itself: it is
                refused while others wait, and its refusals are not counted.

        Raises:
            RefusedError: Overloaded, too late, not started, starting or stopping.
        """
        assert not any(isinstance(post.image, str) for post in posts)
        try:
            self.check_open()
            if is_stream and len(self.queue) >= _STREAM_SHARE * self.settings.batch.max_posts:
                raise RefusedError("queue_full", "others are waiting", 0.0)
            return self.admission.admit(posts, deadline_s, since=since, reserved=reserved)
        except RefusedError as error:
            if not is_stream:
                self.metrics.refusals.labels(error.cause).inc()
            raise

    def _on_batch(self, report: BatchReport) -> None:
        self.metrics.batch(report)
        if not report.failed:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= _FAILURES_UNTIL_UNREADY and self._state is State.READY:
            self._enter(State.FAILING, "the engine fails on every batch")

    def _keep_ready(self) -> None:
        if self.settings.warm_up:
            self._warm_up()
        while not self._stop.wait(_PROBE_EVERY_S):
            if self._state is State.FAILING and self._probe():
                self._failures = 0
                self._enter(State.READY)

    def _warm_up(self) -> None:
        batch = self.settings.batch
        while not self._stop.is_set():
            try:
                self.costs.table = measure(
                    self.engine,
                    workers=batch.workers,
                    batch_posts=batch.max_posts,
                    stop=self._stop.is_set,
                )
                self._also()
            except Exception as error:
                if self._stop.is_set():  # asked to give up
                    return
                LOG.exception("warm-up failed")
                self.reason = str(error) if isinstance(error, AmlrError) else "warm-up failed"
                self._stop.wait(_PROBE_EVERY_S)
                continue
            table = self.costs.table
            self.metrics.engine.labels(
                self.model_name, table.provider, table.precision, __version__
            ).set(1)
            LOG.info("measured", extra={"costs": asdict(table)})
            self._enter(State.READY)
            return

    def _probe(self) -> bool:
        try:
            return self.engine.tag_batch([Post("Paris")])[0].error is None
        except Exception:
            return False

    def collect(self) -> Iterator[Metric]:
        """Values that are read whenever the metrics are asked for."""
        yield gauge("amlr_queue_posts", "Posts waiting.", len(self.queue))
        yield gauge("amlr_queue_bytes", "Bytes waiting or arriving.", self.queue.size_bytes)
        yield gauge("amlr_in_flight_posts", "Posts being computed.", self.pool.in_flight)
        yield gauge("amlr_workers", "Workers alive.", self.pool.alive)
        yield gauge("amlr_backlog_seconds", "Expected work queued.", self.admission.backlog_s())
        yield gauge("amlr_cost_correction", "Measured over tabulated time.", self.costs.correction)
        stats: Any = getattr(self.engine, "image_cache", None)
        if stats is not None:
            yield from cache_metrics(stats)
        certificates: Any = getattr(self.engine, "certificates", None)
        if certificates is not None:
            yield from certificate_metrics(certificates)
