"""Processes of their own: calls to them, environment, memory, and the libraries they load."""

import contextlib
import importlib.metadata
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from amlr.errors import AmlrError

_PACKAGES = (
    "numpy", "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tokenizers", "pillow",
)  # fmt: skip
_THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
_KIB_PER_MIB = 1024
_CALL_S = 1200
_CLOSE_S = 5


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries that matter here."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def memory_mib(pid: int | str = "self", *, peak: bool = False) -> float:
    """Resident memory of a process in MiB (Linux); 0 where the process is gone.

    Args:
        pid: The process.
        peak: Largest size so far instead of the present one.
    """
    name = "VmHWM" if peak else "VmRSS"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kib = next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
    return kib / _KIB_PER_MIB


def own_peak_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    # Only where there is no /proc: Linux lets a child inherit its parent's ru_maxrss, and others
    # count it in bytes.
    fallback = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return memory_mib(peak=True) or fallback


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables with which every numeric library uses exactly `threads` threads."""
    return {f"{name}_NUM_THREADS": str(threads) for name in _THREAD_VARIABLES}


def worker_environment(threads: int, preload: str | None = None) -> dict[str, str]:
    """The whole environment of a measured process.

    Args:
        threads: Threads of its numeric libraries.
        preload: Shared library that its loader puts first (LD_PRELOAD).
    """
    environment = os.environ | thread_variables(threads)
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    return environment | ({"LD_PRELOAD": preload} if preload else {})


@contextlib.contextmanager
def affinity(cores: Sequence[int]) -> Iterator[None]:
    """Run on these cores; processes started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class RemoteError(AmlrError):
    """A process of its own could not start, failed, or took too long."""


class Remote:
    """An object in a process of its own; its methods are called over a pipe, one at a time.

    A process apart gives honest figures of memory and start-up, its own settings of threads, and a
    crash that harms nobody else.
    """

    def __init__(
        self,
        kind: Callable[[], object],
        environment: Mapping[str, str],
        *,
        debug: bool = False,
        is_inner: bool = False,
    ) -> None:
        """Start the process; it makes the object while this one goes on.

        Args:
            kind: Class of the object, known by its module's name.
            environment: Of the process.
            debug: Show what it prints.
            is_inner: Whether the caller is such a process itself: then both end together.
        """
        self._pipe, child = multiprocessing.Pipe()
        self._is_busy = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "amlr.benchmarks.process", str(child.fileno())],
            pass_fds=[child.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            # What libraries print is only worth reading when something fails.
            stderr=None if debug else subprocess.DEVNULL,
            # A group of its own: what the process has started ends with it.
            start_new_session=not is_inner,
        )
        child.close()
        self._pipe.send(kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, method: str, *arguments: Any, seconds: float = math.inf) -> Any:
        """Call a method; see `receive`."""
        self.send(method, *arguments)
        return self.receive(seconds)

    def send(self, method: str, *arguments: Any) -> None:
        """Begin a call, whose answer `receive` waits for.

        Raises:
            RemoteError: The process has ended.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise RemoteError(self._death()) from error
        self._is_busy = True

    def receive(self, seconds: float = math.inf) -> Any:
        """What the call gave, waited for at most so many seconds; then the process is killed.

        Raises:
            RemoteError: The process ended, took too long, or raised something unexpected.
            AmlrError: What the call raised.
        """
        seconds = min(seconds, _CALL_S)
        try:
            if not self._pipe.poll(seconds):
                self._kill()
                raise RemoteError(f"no answer within {seconds:.0f} s")
            failure, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RemoteError(self._death()) from error
        self._is_busy = False
        if failure is not None:
            raise RemoteError(failure) if isinstance(failure, str) else failure
        return value

    def close(self) -> None:
        """End the process: at once where it computes, else as it sees its pipe closed."""
        if self._is_busy:
            self._kill()
        self._pipe.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def _death(self) -> str:
        code = self._process.wait(timeout=10)
        return f"its process ended with code {code} (--debug shows what it printed)"


def serve(pipe: Connection) -> None:
    """Make an object and answer calls (method, arguments) until the other side goes away."""
    served = pipe.recv()()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        failure: AmlrError | str | None = None
        value = None
        try:
            value = getattr(served, method)(*arguments)
        except AmlrError as error:
            failure = error
        # Whatever else a library raises is an answer, not the end of the benchmark.
        except Exception as error:
            traceback.print_exc()
            lines = [line for line in str(error).splitlines() if line.strip()]
            failure = ": ".join([type(error).__name__, *lines[:1]])
        try:
            pipe.send((failure, value))
        except OSError:
            return


if __name__ == "__main__":
    # Libraries that print must not mix with the command's own output.
    with contextlib.redirect_stdout(sys.stderr):
        serve(Connection(int(sys.argv[1])))
