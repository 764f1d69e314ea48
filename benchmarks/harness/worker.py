"""A measured system in a process of its own, and the calls that it is given.

The engine's process thus never imports PyTorch. The command waits for every answer, so never more
than one worker computes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlr.benchmarks.harness.timing import Samples
from amlr.benchmarks.process import own_peak_mib
from amlr.benchmarks.systems.base import PeerSpec, Picture
from amlr.errors import InputError
from amlr.runtime.batching import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Calls to prepare and time.

    Attributes:
        name: Of the workload, in rows and of `--workloads`.
        picture: What happens to pictures.
        calls: Model inputs of each call, or whole posts when `end_to_end`.
        end_to_end: Text and image file in, entities out.
    """

    name: str
    picture: Picture
    calls: tuple[tuple[Any, ...], ...]
    end_to_end: bool = False

    @property
    def batch(self) -> int:
        """Posts a call."""
        return len(self.calls[0])

    @property
    def weight(self) -> float:
        """Share of a limited run's time, relative to others."""
        return 1.0 if self.batch == 1 else 2.5


class Worker:
    """Holds one peer and the calls of one job, prepared on it."""

    def __init__(self) -> None:
        self._system: Any = None
        self._calls: list[Callable[[], Any]] = []

    def start(self, spec: PeerSpec, bundle: Path, threads: int, exports: Path) -> float:
        """Import and load; returns the processor time that took, in seconds."""
        begin = time.process_time()
        from amlr.benchmarks.systems.registry import load_peer

        self._system = load_peer(spec, bundle, threads, exports)
        return time.process_time() - begin

    def prepare(self, job: Job) -> tuple[list[list[Scores]], float]:
        """Build a job's calls and run each once, off the record.

        Returns:
            By call the scores of each post, none of a job from end to end; and milliseconds of the
            very first call, compilation and page faults included.
        """
        # The job before, its pixels and tensors.
        self._calls.clear()
        first_ms: float | None = None
        outputs = []
        system = self._system if job.end_to_end else self._system.peer
        if system is None:
            raise InputError("this system runs end to end only; leave it out of tensor workloads")
        for batch in job.calls:
            call = system.prepare(batch, job.picture)
            begin = time.perf_counter()
            raw = call()
            first_ms = first_ms or (time.perf_counter() - begin) * 1e3
            self._calls.append(call)
            if not job.end_to_end:
                outputs.append(system.scores(raw, batch))
        return outputs, first_ms or 0.0

    def run(self, index: int) -> Samples:
        """Time one prepared call."""
        call = self._calls[index]
        begin, begin_cpu = time.perf_counter_ns(), time.process_time_ns()
        call()
        cpu = time.process_time_ns() - begin_cpu
        return Samples(wall_ns=[time.perf_counter_ns() - begin], cpu_ns=[cpu])

    def memory(self) -> float:
        """Peak resident size in MiB."""
        return own_peak_mib()
