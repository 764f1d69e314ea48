"""The command's side of a worker process."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from typing import Any

from amlr.benchmarks.harness.jobs import Job, Ready, Samples, Verdict
from amlr.benchmarks.harness.process import worker_environment
from amlr.benchmarks.systems.base import PeerSpec
from amlr.errors import AmlrError

START_TIMEOUT_S = 600
CALL_TIMEOUT_S = 1200
CLOSE_TIMEOUT_S = 5


class PeerError(AmlrError):
    """A peer could not start or failed; the benchmark goes on without it."""


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
            [sys.executable, "-m", "amlr.benchmarks.harness.worker", str(child.fileno())],
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

    def wait(self, seconds: float | None = None) -> Ready:
        """Block until the peer has loaded.

        Args:
            seconds: Longest wait; None for a long one.

        Raises:
            PeerError: It could not, or not in time; says why.
        """
        ready: Ready = self._receive(_at_most(seconds, START_TIMEOUT_S))
        return ready

    def prepare(self, job: Job, seconds: float | None = None) -> Verdict:
        """Hand over a job's batches; returns the outputs of their first pass.

        Args:
            job: The batches.
            seconds: Longest wait; None for a long one.

        Raises:
            PeerError: It failed, or took longer.
        """
        self._send("prepare", job)
        verdict: Verdict = self._receive(_at_most(seconds, CALL_TIMEOUT_S))
        return verdict

    def run(self, key: str, index: int, repeats: int = 1) -> Samples:
        """Time one batch of a prepared job."""
        samples: Samples = self._call("run", key, index, repeats)
        return samples

    def drop(self, key: str) -> None:
        """Let the worker forget a job."""
        self._call("drop", key)

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


def _at_most(seconds: float | None, most: float) -> float:
    return most if seconds is None else min(seconds, most)
