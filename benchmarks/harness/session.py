"""All peers of a run: started side by side, timed in turn, dropped when they fail."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from amlr.benchmarks.harness.jobs import Clock, Job
from amlr.benchmarks.harness.peers import PeerError, RemotePeer
from amlr.benchmarks.harness.rows import make_rows
from amlr.benchmarks.harness.timing import Deadline, measure
from amlr.benchmarks.harness.workloads import Workload
from amlr.benchmarks.report.records import ENGINE_PREFIX, PeerRecord, Row
from amlr.benchmarks.systems.base import ESCALATION, ModelInput, PeerSpec, Picture, max_error
from amlr.benchmarks.systems.exported import finish_export, start_export
from amlr.benchmarks.systems.registry import BASELINE, PEERS, resolve
from amlr.errors import ExportError
from amlr.runtime.batching import Scores
from amlr.runtime.results import Post

FP32_LIMIT = 1e-3
"""A float32 peer further off than this computes something else; it is reported, not compared."""
PATIENCE_SHARE, PATIENCE_S = 0.4, 15.0
"""Of the time left, how much a peer may take to load or to prepare; at least so many seconds."""
_log = logging.getLogger(__name__)
Status = Literal["measured", "skipped", "failed"]
Reference = Callable[[Sequence[ModelInput], Picture], list[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Choices of a run.

    Attributes:
        engine: Path of the bundle.
        groups: Workloads to time; empty for parity alone.
        peers: Names of peers.
        threads: Threads of every measured process.
        clock: `wall`, or `cpu` for machines that others use too.
        quick: Small samples, for a demo or a smoke test.
        deadline: When to end; workloads share what is left of it.
        exports: Where the plain exports are kept for the next run, or None.
        debug: Let worker processes print.
    """

    engine: Path
    groups: tuple[str, ...]
    peers: tuple[str, ...]
    threads: int = 1
    clock: Clock = "wall"
    quick: bool = False
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    exports: Path | None = None
    debug: bool = False


class Session:
    """Worker processes of one benchmark run."""

    def __init__(self, options: RunOptions) -> None:
        """Start every process; none is waited for yet."""
        self._options, self._deadline = options, options.deadline
        self._temporary = tempfile.TemporaryDirectory(prefix="amlr-bench-")
        self._folder = Path(self._temporary.name)
        self._exports = options.exports or self._folder / "plain"
        self.records: dict[str, PeerRecord] = {}
        self._specs: dict[str, PeerSpec] = {}
        self._alive: dict[str, RemotePeer] = {}
        self._export = None
        self._late: list[PeerSpec] = []
        for name in options.peers if options.groups else ():
            spec, reason = resolve(PEERS[name], self._folder)
            if reason:
                self._record(spec, "skipped", reason)
            elif spec.exports:
                self._late.append(spec)
            else:
                self._start(spec)
        if self._late:
            self._export = start_export(str(options.engine), self._exports)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._export is not None and self._export.poll() is None:
            self._export.kill()
            self._export.communicate()
        for peer in self._alive.values():
            peer.close()
        self._temporary.cleanup()

    def _record(self, spec: PeerSpec, status: Status, reason: str) -> None:
        self._specs[spec.label] = spec
        self.records[spec.label] = PeerRecord(
            backend=spec.name,
            precision=spec.precision,
            about=spec.about,
            status=status,
            reason=reason,
        )

    def _start(self, spec: PeerSpec) -> None:
        self._record(spec, "measured", "")
        try:
            self._alive[spec.label] = RemotePeer(
                spec,
                bundle=str(self._options.engine),
                threads=self._options.threads,
                exports=str(self._exports),
                debug=self._options.debug,
            )
        except (PeerError, OSError) as error:
            self._fail(spec.label, error)

    def _fail(self, label: str, error: Exception) -> None:
        reason = str(error)
        record = self.records[label]
        record.status, record.reason = "failed", reason
        _log.info(f"  {label} failed: {reason}")
        peer = self._alive.pop(label, None)
        if peer is not None:
            peer.close()

    def add_engines(self, specs: Sequence[PeerSpec]) -> None:
        """Start the tiers of the engine under test; they come first in every list."""
        others = dict(self.records), dict(self._alive)
        self.records.clear()
        self._alive.clear()
        for spec in specs:
            self._start(spec)
        self.records |= others[0]
        self._alive |= others[1]

    def wait(self) -> None:
        """Wait until all peers have loaded, those that read the exports included."""
        if self._export is not None:
            try:
                finish_export(self._export, self._share_of_time())
                for spec in self._late:
                    self._start(spec)
            except ExportError as error:
                for spec in self._late:
                    self._record(spec, "failed", str(error))
                    _log.info(f"  {spec.label} failed: {error}")
            self._export = None
        for label in list(self._alive):
            try:
                load_cpu_s = self._alive[label].wait(self._patience(label))
            except PeerError as error:
                self._fail(label, error)
                continue
            self.records[label].load_cpu_s = round(load_cpu_s, 3)

    def _share_of_time(self) -> float:
        return max(PATIENCE_S, self._deadline.left * PATIENCE_SHARE)

    def _patience(self, label: str) -> float:
        # The engine and its first baseline are what a run is for: they are always waited for.
        is_needed = label.startswith(ENGINE_PREFIX) or self._specs[label].name == BASELINE
        return math.inf if is_needed else self._share_of_time()

    def first_post(self, batch: Sequence[ModelInput], posts: Sequence[Post]) -> None:
        """Give each system its first post, one with a picture, and note how long it took.

        Args:
            batch: The post as tensors.
            posts: The same as text and picture, for systems that run end to end only.
        """
        tensors = Job(picture="cold", calls=(tuple(batch),))
        whole = Job(picture="hit", calls=(tuple(posts),), end_to_end=True)
        for label in list(self._alive):
            spec = self._specs[label]
            # Its calibration needs more posts than one.
            if spec.precision == "int8" and not spec.name.startswith(ENGINE_PREFIX):
                continue
            _log.info(f"first post: {label}")
            try:
                job = whole if spec.kind == ESCALATION else tensors
                verdict = self._alive[label].prepare(job, self._patience(label))
            except PeerError as error:
                self._fail(label, error)
                continue
            self.records[label].first_post_ms = round(verdict.first_ms, 3)

    def run(self, workload: Workload, reference: Reference, all_weights: float) -> list[Row]:
        """Check and time one workload on every peer that is still alive.

        Args:
            workload: What to run.
            reference: Gives the eager scores of a batch.
            all_weights: Weights of this workload and all that follow.
        """
        budget, seconds = self._deadline.share(workload.budget, workload.weight, all_weights)
        begin = time.monotonic()
        labels = [label for label in self._alive if self._takes(label, workload)]
        _log.info(f"{workload.name}, {workload.batch} posts a call: {len(labels)} systems")
        for label in list(labels):
            if not self._prepare(label, workload.name, workload.job, reference):
                labels.remove(label)
        if self._deadline.is_set:
            left = seconds - (time.monotonic() - begin)
            rounds = budget.min_rounds if left > 0 else 1
            budget = replace(budget, seconds=max(0.0, left), min_rounds=rounds)
        runners = {label: self._alive[label] for label in labels}
        samples = measure(runners, len(workload.job.calls), budget, on_failure=self._fail)
        for label, durations in samples.items():
            record = self.records[label]
            record.waiting = round(max(record.waiting or 0.0, durations.waiting), 3)
        return make_rows(workload, samples, self._specs, self._options.threads, self._options.clock)

    def _takes(self, label: str, workload: Workload) -> bool:
        name = self._specs[label].name
        is_whole_only = self._specs[label].kind == ESCALATION
        if name in workload.without or (is_whole_only and not workload.job.end_to_end):
            return False
        return workload.peers is None or name in workload.peers or name.startswith(ENGINE_PREFIX)

    def _prepare(self, label: str, name: str, job: Job, reference: Reference) -> bool:
        record, precision = self.records[label], self._specs[label].precision
        try:
            verdict = self._alive[label].prepare(job, self._patience(label))
        except PeerError as error:
            self._fail(label, error)
            return False
        if job.end_to_end:
            return True
        expected = [reference(batch, job.picture) for batch in job.calls]
        off = min(max_error(expected, verdict.outputs), 1e9)
        record.max_abs_error = max(record.max_abs_error or 0.0, off)
        # A workload of several batch sizes keeps the worst.
        record.errors[name] = max(record.errors.get(name) or 0.0, off)
        if precision == "fp32" and off > FP32_LIMIT:
            self._fail(label, PeerError(f"its numbers are off by {off:.3g} on {name}"))
            return False
        return True

    def note_memory(self) -> None:
        """Record each process's peak memory so far."""
        for label in list(self._alive):
            try:
                self.records[label].peak_memory_mb = round(self._alive[label].memory_mib(), 1)
            except PeerError as error:
                self._fail(label, error)
