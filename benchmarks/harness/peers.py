"""Measured systems, each in a process of its own: the worker's side, and the command's.

A process apart gives honest memory and start-up figures (the engine's process never imports
PyTorch), its own thread settings, and a crash that harms nobody else. The command sends requests
over a pipe and waits, so never more than one worker computes.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from amlr.benchmarks.harness.jobs import Job, Samples, Verdict
from amlr.benchmarks.process import own_peak_mib, worker_environment
from amlr.benchmarks.systems.base import PeerSpec
from amlr.errors import AmlrError, InputError

START_TIMEOUT_S = 600
CALL_TIMEOUT_S = 1200
CLOSE_TIMEOUT_S = 5


class PeerError(AmlrError):
    """A peer could not start or failed; the benchmark goes on without it."""


class Worker:
    """Holds one peer and the calls of one job, prepared on it."""

    def __init__(self) -> None:
        self._loaded: Any = None
        self._calls: list[Callable[[], Any]] = []

    def start(self, spec: PeerSpec, bundle: str, threads: int, exports: str | None) -> float:
        """Import and load; returns the processor time that took, in seconds."""
        begin = time.process_time()
        from amlr.benchmarks.systems.registry import load_peer

        self._loaded = load_peer(spec, bundle, threads, exports)
        return time.process_time() - begin

    def prepare(self, job: Job) -> Verdict:
        """Build a job's calls and run each once, off the record; return what it gave."""
        # The job before, its pixels and tensors.
        self._calls.clear()
        first_ms: float | None = None
        outputs = []
        peer, whole = self._loaded.peer, self._loaded.end_to_end
        if peer is None and not job.end_to_end:
            raise InputError("this system runs end to end only; leave it out of tensor workloads")
        for batch in job.calls:
            call = (whole if job.end_to_end else peer).prepare(batch, job.picture)
            begin = time.perf_counter()
            raw = call()
            first_ms = first_ms or (time.perf_counter() - begin) * 1e3
            outputs.append(whole.entities(raw) if job.end_to_end else peer.scores(raw, batch))
            self._calls.append(call)
        return Verdict(outputs=outputs, first_ms=first_ms or 0.0)

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


class RemotePeer:
    """A peer in its own process; requests are answered one at a time."""

    def __init__(
        self,
        spec: PeerSpec,
        *,
        bundle: str,
        threads: int,
        exports: str | None = None,
        debug: bool = False,
    ) -> None:
        """Spawn the process and ask it to load; `wait` collects the answer.

        Several peers can thus load side by side.
        """
        self._pipe, child = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "amlr.benchmarks.harness.peers", str(child.fileno())],
            pass_fds=[child.fileno()],
            env=worker_environment(threads, spec.preload),
            stdin=subprocess.DEVNULL,
            # What libraries print is only worth reading when a peer fails.
            stderr=None if debug else subprocess.DEVNULL,
            # A group of its own: what a peer has started ends with it.
            start_new_session=True,
        )
        child.close()
        self._send("start", spec, bundle, threads, exports)

    def wait(self, seconds: float = math.inf) -> float:
        """Block until the peer has loaded, at most so many seconds.

        Returns:
            Processor time of import and load, in seconds.

        Raises:
            PeerError: It could not, or not in time; says why.
        """
        load_cpu_s: float = self._receive(min(seconds, START_TIMEOUT_S))
        return load_cpu_s

    def prepare(self, job: Job, seconds: float = math.inf) -> Verdict:
        """Hand over a job's calls; returns the outputs of their first pass.

        Raises:
            PeerError: It failed, or took longer than so many seconds.
        """
        self._send("prepare", job)
        verdict: Verdict = self._receive(min(seconds, CALL_TIMEOUT_S))
        return verdict

    def run(self, index: int) -> Samples:
        """Time one call of the prepared job."""
        samples: Samples = self._call("run", index)
        return samples

    def memory_mib(self) -> float:
        """Peak resident size of the process in MiB."""
        peak: float = self._call("memory")
        return peak

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            try:
                self._send("close")
                self._receive(CLOSE_TIMEOUT_S)
                self._process.wait(timeout=CLOSE_TIMEOUT_S)
            except (PeerError, subprocess.TimeoutExpired):
                self._kill()
        self._process.wait()
        self._pipe.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._send(method, *arguments)
        return self._receive(CALL_TIMEOUT_S)

    def _send(self, method: str, *arguments: Any) -> None:
        try:
            self._pipe.send((method, arguments))
        except (BrokenPipeError, OSError) as error:
            raise PeerError(self._death()) from error

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                self._kill()
                raise PeerError(f"no answer within {timeout_s:.0f} s")
            status, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise PeerError(self._death()) from error
        if status == "error":
            raise PeerError(str(value))
        return value

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _death(self) -> str:
        code = self._process.wait(timeout=10)
        return f"its process ended with code {code} (--debug shows what it printed)"


if __name__ == "__main__":
    # Libraries that print must not mix with the command's own output.
    with contextlib.redirect_stdout(sys.stderr):
        serve(Connection(int(sys.argv[1])))
