"""Posts to send, and servers as processes of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from amlr.benchmarks.data import in_memory, read_jsonl
from amlr.benchmarks.harness.process import memory_mib, thread_variables
from amlr.benchmarks.serving.client import Triples
from amlr.runtime import Engine, Post

_READY_S = 300.0


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
        return ticks / os.sysconf("SC_CLK_TCK")


def machine_cpu_s() -> float:
    """CPU time that all processes of this machine have used (Linux)."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]  # times of guests, behind the eight, are part of user time
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def load_options(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that all load tests share; `count` is the usual number of different posts."""
    path = click.Path(path_type=Path)
    options = (
        click.option("--engine", "bundle", type=path, required=True, help="Folder of the bundle."),
        click.option(
            "--posts", "posts_file", type=path, required=True, help="JSON lines {text, image}."
        ),
        click.option("--images", type=path, required=True, help="Folder of the pictures."),
        click.option("--count", default=count, show_default=True, help="Different posts."),
        click.option("--json", "out", type=path, help="Write the figures here."),
    )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def read_posts(path: Path, images: Path, count: int) -> list[Post]:
    """Posts of JSON lines {text, image}, their pictures as bytes.

    Raises:
        InputError: The file is missing or holds something else.
    """
    return [in_memory(item.post) for item in read_jsonl(path, images, count).posts]


def triples(engine: Engine, posts: list[Post]) -> list[Triples]:
    """What the engine itself finds: the answers to expect."""
    return [
        [(e.start, e.end, e.label) for e in result.entities] for result in engine.tag_batch(posts)
    ]


@contextlib.contextmanager
def running(module: str, arguments: list[str]) -> Iterator[ServerProcess]:
    """Start `python -m module ... --port N`, wait until it is ready, end it afterwards."""
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
            raise RuntimeError(f"the server ended with {process.returncode} while starting")
        for path in ("/v2/health/ready", "/health"):
            url = f"http://127.0.0.1:{port}{path}"
            # An answer such as 404 or 503 is an OSError as well.
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
                return
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready within {_READY_S:.0f} s")
