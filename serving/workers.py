"""Threads that take batches from the queue and call the engine; replaced when they fail.

Nothing is lost: every job that a worker took is answered, with a result, a refusal or an error,
also when the worker dies or hangs.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from itertools import count

from amlr.runtime.results import Result
from amlr.serving.costs import CostModel
from amlr.serving.jobs import (
    Answer,
    Job,
    RefusedError,
    TaggingEngine,
    WorkerFailedError,
    count_pictures,
)
from amlr.serving.queue import JobQueue

LOG = logging.getLogger("amlr.serving.workers")
_FAILED = "the engine failed on this post; try again, and see the server's log"


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The outcome of one batch, for metrics.

    Attributes:
        jobs: Posts that were computed.
        started: Monotonic time at which they left the queue.
        compute_s: Time of the engine's call.
        failed: Whether the engine or the worker broke.
        expired: Posts refused because their deadline could no longer be met.
    """

    jobs: Sequence[Job]
    started: float
    compute_s: float = 0.0
    failed: bool = False
    expired: int = 0


class _Worker(threading.Thread):
    """A thread with what it is at: its batch, since when, and whether it was given up."""

    def __init__(self, number: int, work: "Callable[[_Worker], None]") -> None:
        # Daemons: a call that hangs in native code must not keep the process alive.
        super().__init__(target=work, args=(self,), name=f"amlr-worker-{number}", daemon=True)
        self.jobs: list[Job] = []
        self.since, self.abandoned = 0.0, False


class WorkerPool:
    """A fixed number of live workers and a supervisor that keeps it so."""

    def __init__(
        self,
        engine: TaggingEngine,
        queue: JobQueue,
        costs: CostModel,
        *,
        workers: int,
        stuck_s: float,
        report: Callable[[BatchReport], None] = lambda report: None,
        replaced: Callable[[], None] = lambda: None,
        check_every_s: float = 0.5,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            engine: Called by all workers at the same time.
            queue: Where batches come from.
            costs: Learns from every batch; predicts whether a deadline can still be met.
            workers: How many.
            stuck_s: A call that lasts longer is given up.
            report: Receives every batch, in the worker's thread.
            replaced: Called for every worker that had to be replaced.
            check_every_s: Period of the supervisor.
        """
        self._engine, self._queue, self._costs = engine, queue, costs
        self._count, self._stuck_s = workers, stuck_s
        self._report, self._replaced = report, replaced
        self._check_every_s = check_every_s
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._numbers = count()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="amlr-supervisor")
        self._supervisor.daemon = True

    def start(self) -> None:
        """Start workers and supervisor."""
        for _ in range(self._count):
            self._spawn()
        self._supervisor.start()

    @property
    def in_flight_s(self) -> float:
        """Expected time, uncorrected, of what is left of the batches under way, per worker sum."""
        now = time.monotonic()
        left = 0.0
        for worker in list(self._workers):
            cost = sum(job.cost_s for job in list(worker.jobs))
            if cost:
                # A batch runs beside others: a worker works off its share of the time that passes.
                left += max(0.0, cost - (now - worker.since) / self._count)
        return left

    @property
    def in_flight(self) -> int:
        """Posts under way."""
        return sum(len(worker.jobs) for worker in list(self._workers))

    @property
    def alive(self) -> int:
        """Workers whose thread runs."""
        with self._lock:
            return sum(worker.is_alive() for worker in self._workers)

    def stop(self, timeout_s: float) -> bool:
        """Wait for the workers to empty a closed queue; answer what is left with an error.

        Returns:
            Whether everything was finished in time.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and (self.in_flight or len(self._queue)):
            time.sleep(0.01)
        self._stopping.set()
        finished = not self.in_flight and not len(self._queue)
        for job in self._queue.drain():
            _fail(job, WorkerFailedError("the server stopped before this post was begun"))
        for worker in list(self._workers):
            self._abandon(worker, "the server stopped while this post was computed")
            if finished:
                worker.join(1.0)
        return finished

    # One worker ------------------------------------------------------------------------------

    def _spawn(self) -> None:
        worker = _Worker(next(self._numbers), self._work)
        # Nobody sees it answer before it counts as alive.
        with self._lock:
            worker.start()
            self._workers.append(worker)

    def _work(self, worker: _Worker) -> None:
        while not worker.abandoned:
            jobs = self._queue.take()
            if jobs is None:
                return
            worker.since = time.monotonic()
            worker.jobs = jobs
            self._run(worker, jobs)
            worker.jobs = []

    def _run(self, worker: _Worker, jobs: list[Job]) -> None:
        started = worker.since
        expected = self._costs.batch_s([job.tokens for job in jobs], count_pictures(jobs))
        running: list[Job] = []
        expired = 0
        for job in jobs:
            if not job.future.set_running_or_notify_cancel():
                continue
            if started + expected > job.deadline:
                expired += 1
                late = "the deadline can no longer be met; nothing was computed"
                _fail(job, RefusedError("expired", late, self._queue.cost_s))
            else:
                running.append(job)
        if not running:
            if expired:
                self._report(BatchReport(running, started, expired=expired))
            return
        try:
            results = self._call(running)
        except Exception:
            LOG.exception("engine failed on a batch of %d", len(running))
            self._retry_alone(worker, running, expired)
            return
        compute_s = time.monotonic() - started
        for job, result in zip(running, results, strict=True):
            _finish(job, result, started, compute_s)
        self._costs.observe([job.tokens for job in running], count_pictures(running), compute_s)
        self._report(BatchReport(running, started, compute_s, expired=expired))

    def _retry_alone(self, worker: _Worker, jobs: list[Job], expired: int) -> None:
        """One post may have poisoned the batch: the others must not suffer for it."""
        failures = 0
        for job in jobs:
            if worker.abandoned:
                return
            begun = time.monotonic()
            try:
                if failures > 1:  # the engine is broken, not the posts
                    raise WorkerFailedError(_FAILED)
                (result,) = self._call([job])
            except Exception:
                failures += 1
                _fail(job, WorkerFailedError(_FAILED))
            else:
                _finish(job, result, begun, time.monotonic() - begun)
        # One bad post is the post's failure; more are the engine's.
        broken = failures > 1 or failures == len(jobs)
        seconds = time.monotonic() - worker.since
        self._report(BatchReport(jobs, worker.since, seconds, broken, expired))

    def _call(self, jobs: Sequence[Job]) -> list[Result]:
        results = self._engine.tag_batch([job.post for job in jobs])
        if len(results) != len(jobs):
            raise WorkerFailedError(f"engine gave {len(results)} results for {len(jobs)} posts")
        return results

    # Supervision -----------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._stopping.wait(self._check_every_s):
            self.check()

    def check(self) -> None:
        """Replace workers that died or hang; the supervisor calls this all the time."""
        now = time.monotonic()
        for worker in list(self._workers):
            is_dead = not worker.is_alive() and not (self._queue.closed and not worker.jobs)
            is_stuck = bool(worker.jobs) and now - worker.since > self._stuck_s
            if is_dead or is_stuck:
                what = "died" if is_dead else "hangs"
                LOG.error("%s %s; replacing it", worker.name, what)
                lost = list(worker.jobs)
                self._abandon(worker, _FAILED)
                self._report(BatchReport(lost, worker.since, failed=True))
                self._replaced()
                self._spawn()

    def _abandon(self, worker: _Worker, message: str) -> None:
        worker.abandoned = True
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
        for job in worker.jobs:
            _fail(job, WorkerFailedError(message))


def _finish(job: Job, result: Result, started: float, compute_s: float) -> None:
    answer = Answer(result=result, wait_s=started - job.submitted, compute_s=compute_s)
    # Answered already where the worker was taken for stuck.
    with contextlib.suppress(InvalidStateError):
        job.future.set_result(answer)


def _fail(job: Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        job.future.set_exception(error)
