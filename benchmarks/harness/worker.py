"""One measured system in a process of its own: `python -m amlr.benchmarks.harness.worker FD`.

A process apart gives honest memory and start-up figures (the engine's process never imports
PyTorch), its own thread settings, and a crash that harms nobody else. The parent sends requests
over a pipe and waits, so never more than one worker computes.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from amlr.benchmarks.harness.jobs import Job, Ready, Samples, Verdict
from amlr.benchmarks.harness.process import own_peak_mib
from amlr.benchmarks.systems.base import PeerSpec
from amlr.errors import AmlrError, InputError

Calls = list[Callable[[], Any]]


class Worker:
    """Holds one peer and the calls prepared on it."""

    def __init__(self) -> None:
        self._loaded: Any = None
        self._jobs: dict[str, Calls] = {}

    def start(self, spec: PeerSpec, bundle: str, threads: int, exports: str | None) -> Ready:
        """Import, load and be ready for a first post."""
        wall, cpu = time.perf_counter(), time.process_time()
        from amlr.benchmarks.systems.registry import load_peer

        self._loaded = load_peer(spec, bundle, threads, exports)
        return Ready(load_s=time.perf_counter() - wall, load_cpu_s=time.process_time() - cpu)

    def prepare(self, job: Job) -> Verdict:
        """Build a job's calls and run each once, off the record; return what it gave."""
        calls: Calls = []
        first_ms: float | None = None
        outputs = []
        peer, whole = self._loaded.peer, self._loaded.end_to_end
        if peer is None and not job.end_to_end:
            raise InputError("this system runs end to end only; leave it out of tensor workloads")
        for batch in job.posts if job.end_to_end else job.batches:
            call = (whole if job.end_to_end else peer).prepare(batch, job.picture)
            begin = time.perf_counter()
            raw = call()
            first_ms = first_ms or (time.perf_counter() - begin) * 1e3
            outputs.append(whole.entities(raw) if job.end_to_end else peer.scores(raw, batch))
            calls.append(call)
        self._jobs[job.key] = calls
        return Verdict(outputs=outputs, first_ms=first_ms or 0.0)

    def run(self, key: str, index: int, repeats: int) -> Samples:
        """Time one prepared call."""
        call = self._jobs[key][index]
        wall, cpu = [], []
        for _ in range(repeats):
            begin, begin_cpu = time.perf_counter_ns(), time.process_time_ns()
            call()
            cpu.append(time.process_time_ns() - begin_cpu)
            wall.append(time.perf_counter_ns() - begin)
        return Samples(wall_ns=wall, cpu_ns=cpu)

    def drop(self, key: str) -> None:
        """Forget a job, its pixels and tensors."""
        self._jobs.pop(key, None)

    def memory(self) -> float:
        """Peak resident size in MiB."""
        return own_peak_mib()

    def close(self) -> None:
        """Release the peer."""
        if self._loaded is not None:
            self._loaded.close()


def serve(pipe: Connection) -> None:
    """Answer requests (method, arguments) until the parent goes away."""
    worker = Worker()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("ok", getattr(worker, method)(*arguments))
        # Whatever a peer raises is an answer, not the end of the benchmark.
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            if not isinstance(error, AmlrError):
                reason = f"{type(error).__name__}: {reason}"
                traceback.print_exc()
            answer = ("error", reason)
        try:
            pipe.send(answer)
        except (BrokenPipeError, OSError):
            return
        if method == "close":
            return


def main() -> None:
    """Entry point: the number of the inherited pipe is the only argument."""
    # Libraries that print must not mix with the command's own output.
    with contextlib.redirect_stdout(sys.stderr):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
