"""All peers of a run: started side by side, timed in turn, dropped when they fail."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from amlr.benchmarks.harness.rows import make_rows
from amlr.benchmarks.harness.timing import Clock, Deadline, measure
from amlr.benchmarks.harness.worker import Job, Worker
from amlr.benchmarks.harness.workloads import Pool, budget_for
from amlr.benchmarks.process import Remote, worker_environment
from amlr.benchmarks.report.records import PeerRecord, Row
from amlr.benchmarks.systems.base import ESCALATION, ModelInput, PeerSpec, Picture, max_error
from amlr.benchmarks.systems.exported import Tools
from amlr.benchmarks.systems.registry import BASELINE, PEERS, resolve
from amlr.errors import AmlrError
from amlr.runtime.batching import Scores

FP32_LIMIT = 1e-3
"""A float32 peer further off than this computes something else; it is reported, not compared."""
PATIENCE_SHARE, PATIENCE_S = 0.4, 15.0
"""Of the time left, how much a peer may take to load or to prepare; at least so many seconds."""
START_TIMEOUT_S = 600
_log = logging.getLogger(__name__)
Reference = Callable[[Sequence[ModelInput], Picture], list[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Choices of a run.

    Attributes:
        engine: Path of the bundle.
        providers: Providers of the engine, each with each of `precisions`.
        precisions: Precisions of the engine.
        groups: Workloads to time; empty for parity alone.
        host: Whether the host's own cost is measured.
        calibration: Whether scores are compared with labels.
        peers: Names of peers.
        threads: Threads of every measured process.
        clock: `wall`, or `cpu` for machines that others use too.
        quick: Small samples, for a demo or a smoke test.
        deadline: When to end; workloads share what is left of it.
        exports: Where the plain exports are kept for the next run, or None.
        debug: Let worker processes print.
    """

    engine: Path
    providers: tuple[str, ...]
    precisions: tuple[str, ...]
    groups: tuple[str, ...]
    host: bool
    calibration: bool
    peers: tuple[str, ...]
    threads: int
    clock: Clock
    quick: bool
    deadline: Deadline
    exports: Path | None
    debug: bool


@dataclass(slots=True)
class _Member:
    """A system of the run, whether or not it takes part; `process` is None where it does not."""

    spec: PeerSpec
    record: PeerRecord
    process: Remote | None = None

    def fail(self, reason: object) -> None:
        """Leave it out from here on."""
        self.record.status, self.record.reason = "failed", str(reason)
        _log.info(f"  {self.spec.label} failed: {reason}")
        if self.process is not None:
            self.process.close()
            self.process = None


class Session:
    """Worker processes of one benchmark run."""

    def __init__(self, options: RunOptions) -> None:
        """Start every process; none is waited for yet."""
        self._options, self._deadline = options, options.deadline
        self._temporary = tempfile.TemporaryDirectory(prefix="amlr-bench-")
        folder = Path(self._temporary.name)
        self._exports = options.exports or folder / "plain"
        self._members: dict[str, _Member] = {}
        for name in options.peers if options.groups else ():
            spec, reason = resolve(PEERS[name], folder)
            member = self._add(spec)
            if reason:
                member.record.status, member.record.reason = "skipped", reason
            elif not spec.exports:
                self._start(member)
        self._export: Remote | None = None
        if any(m.spec.exports for m in self._members.values() if not m.record.reason):
            self._export = Remote(Tools, worker_environment(1), debug=options.debug)
            self._export.send("export", options.engine, self._exports)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._export is not None:
            self._export.close()
        for _, process in self._running():
            process.close()
        self._temporary.cleanup()

    @property
    def records(self) -> list[PeerRecord]:
        """All systems, the engine's tiers first."""
        return [member.record for member in self._members.values()]

    def _running(self) -> list[tuple[_Member, Remote]]:
        return [(m, m.process) for m in self._members.values() if m.process is not None]

    def _add(self, spec: PeerSpec) -> _Member:
        record = PeerRecord(
            backend=spec.name,
            precision=spec.precision,
            about=spec.about,
            status="measured",
            reason="",
        )
        self._members[spec.label] = _Member(spec, record)
        return self._members[spec.label]

    def _start(self, member: _Member) -> None:
        options, spec = self._options, member.spec
        try:
            environment = worker_environment(options.threads, spec.preload)
            member.process = Remote(Worker, environment, debug=options.debug)
            # Several load side by side.
            member.process.send("start", spec, options.engine, options.threads, self._exports)
        except (AmlrError, OSError) as error:
            member.fail(error)

    def add_engines(self, specs: Sequence[PeerSpec]) -> None:
        """Start the tiers of the engine under test; they come first in every list."""
        others, self._members = self._members, {}
        for spec in specs:
            self._start(self._add(spec))
        self._members |= others

    def wait(self) -> None:
        """Wait until all peers have loaded, those that read the exports included."""
        if self._export is not None:
            late = [m for m in self._members.values() if m.spec.exports and not m.record.reason]
            try:
                self._export.receive(self._share_of_time())
                for member in late:
                    self._start(member)
            except AmlrError as error:
                for member in late:
                    member.fail(f"the one-graph export failed: {error}")
            self._export.close()
        for member, process in self._running():
            try:
                seconds = min(self._patience(member.spec), START_TIMEOUT_S)
                member.record.load_cpu_s = round(process.receive(seconds), 3)
            except AmlrError as error:
                member.fail(error)

    def _share_of_time(self) -> float:
        return max(PATIENCE_S, self._deadline.left * PATIENCE_SHARE)

    def _patience(self, spec: PeerSpec) -> float:
        # The engine and its first baseline are what a run is for: they are always waited for.
        return math.inf if spec.is_engine or spec.name == BASELINE else self._share_of_time()

    def first_post(self, pool: Pool) -> None:
        """Give each system its first post, one with a picture, and note how long it took."""
        tensors = Job(name="first post", picture="cold", calls=(pool.inputs[:1],))
        posts = (pool.posts[:1],)
        whole = Job(name="first post", picture="hit", calls=posts, end_to_end=True)
        for member, process in self._running():
            spec = member.spec
            # Its calibration needs more posts than one.
            if spec.precision == "int8" and not spec.is_engine:
                continue
            _log.info(f"first post: {spec.label}")
            try:
                job = whole if spec.kind == ESCALATION else tensors
                _, first_ms = process.call("prepare", job, seconds=self._patience(spec))
                member.record.first_post_ms = round(first_ms, 3)
            except AmlrError as error:
                member.fail(error)

    def run(self, job: Job, reference: Reference, share: float) -> list[Row]:
        """Check and time one workload on every peer that is still alive.

        Args:
            job: What to run.
            reference: Gives the eager scores of a batch.
            share: Of the time left, what it may take.
        """
        end = time.monotonic() + self._deadline.left * share
        taking = [
            (member, process)
            for member, process in self._running()
            if job.end_to_end or member.spec.kind != ESCALATION
        ]
        _log.info(f"{job.name}, {job.batch} posts a call: {len(taking)} systems")
        runners = {
            member.spec.label: partial(process.call, "run")
            for member, process in taking
            if self._prepare(member, process, job, reference)
        }
        budget = budget_for(job, quick=self._options.quick)
        if self._deadline.is_set:
            budget = budget.within(end - time.monotonic())
        samples = measure(
            runners,
            len(job.calls),
            budget,
            on_failure=lambda label, error: self._members[label].fail(error),
        )
        for label, durations in samples.items():
            record = self._members[label].record
            record.waiting = round(max(record.waiting or 0.0, durations.waiting), 3)
        specs = {label: self._members[label].spec for label in samples}
        return make_rows(job, samples, specs, self._options.threads, self._options.clock)

    def _prepare(self, member: _Member, process: Remote, job: Job, reference: Reference) -> bool:
        """Let a system run a workload once; whether it is to be timed."""
        record = member.record
        try:
            outputs, _ = process.call("prepare", job, seconds=self._patience(member.spec))
        except AmlrError as error:
            member.fail(error)
            return False
        if job.end_to_end:
            return True
        expected = [reference(batch, job.picture) for batch in job.calls]
        off = min(max_error(expected, outputs), 1e9)
        record.max_abs_error = max(record.max_abs_error or 0.0, off)
        # A workload of several batch sizes keeps the worst.
        record.errors[job.name] = max(record.errors.get(job.name) or 0.0, off)
        if record.precision == "fp32" and off > FP32_LIMIT:
            member.fail(f"its numbers are off by {off:.3g} on {job.name}")
            return False
        return True

    def note_memory(self) -> None:
        """Record each process's peak memory so far."""
        for member, process in self._running():
            try:
                member.record.peak_memory_mb = round(process.call("memory"), 1)
            except AmlrError as error:
                member.fail(error)
