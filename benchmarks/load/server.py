"""Servers as processes of their own, on the loopback interface."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amlr.benchmarks.process import memory_mib, thread_variables

_READY_S = 300.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server.

    Attributes:
        process: Its process.
        port: Where it listens, on the loopback interface.
    """

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def memory_mib(self) -> float:
        """Its resident memory in MiB (Linux)."""
        return memory_mib(self.process.pid)

    @property
    def cpu_s(self) -> float:
        """CPU time of it and of all processes it started (Linux)."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(") ")[2].split()
                # A session of its own was made for it; fields are counted from the state on.
                if int(fields[3]) == self.process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU time that all processes of this machine have used (Linux)."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]  # times of guests, behind the eight, are part of user time
    return (sum(fields) - idle) / _TICKS_PER_S


@contextlib.contextmanager
def running(module: str, arguments: Sequence[str]) -> Iterator[ServerProcess]:
    """Start `python -m module ... --port N`, wait until it is ready, end it afterwards.

    Raises:
        RuntimeError: It ended while starting; `AMLR_SHOW=1` shows what it printed.
        TimeoutError: It did not get ready.
    """
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if "AMLR_SHOW" not in os.environ else None,
        # A group of its own: some servers start further processes.
        start_new_session=True,
        env=os.environ | thread_variables(1),
    )
    try:
        _wait_ready(process, port)
        yield ServerProcess(process, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _wait_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(
                f"the server ended with {process.returncode} while starting; "
                "set AMLR_SHOW=1 to see what it printed"
            )
        for path in ("/v2/health/ready", "/health"):
            url = f"http://127.0.0.1:{port}{path}"
            # An answer such as 404 or 503 is an OSError as well.
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
                return
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready within {_READY_S:.0f} s")
