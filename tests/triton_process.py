"""A real Triton server on the loopback interface, from an environment that holds nvidia-pytriton.

That package carries `tritonserver` with its python backend. It pins old versions of what amlr
needs, so it has a virtual environment of its own, with amlr installed in it as well.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from amlr.benchmarks.load.server import free_ports
from amlr.errors import BackendUnavailableError

READY_S = 120.0
STOP_S = 30.0
_INSTALL = "make one with: make triton"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where the parts of a server are.

    Attributes:
        server: The executable.
        backend: Folder of the python backend.
        stub: The process that runs Python for it, for the environment's version of Python.
        libraries: Folders for the dynamic linker.
        programs: `bin` of the environment.
    """

    server: Path
    backend: Path
    stub: Path
    libraries: tuple[Path, ...]
    programs: Path


def find_installation(venv: Path) -> Installation:
    """Look into a virtual environment.

    Raises:
        BackendUnavailableError: There is none, or it holds no server.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise BackendUnavailableError(f"no virtual environment at {venv}; {_INSTALL}")
    code = (
        "import sysconfig as s; print(s.get_path('purelib'), s.get_config_var('LIBDIR'), "
        "s.get_python_version())"
    )
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    packages, libraries, version = answer.stdout.split()
    root = Path(packages) / "pytriton" / "tritonserver"
    found = Installation(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / "triton_python_backend_stub",
        # The interpreter's own folder first: the package brings another build of libpython.
        libraries=(Path(libraries), Path(packages) / "nvidia_pytriton.libs"),
        programs=(venv / "bin").absolute(),
    )
    for path in (found.server, found.backend, found.stub):
        if not path.exists():
            raise BackendUnavailableError(f"no {path.name} in {venv}; {_INSTALL}")
    return found


@dataclass(slots=True)
class TritonServer:
    """One server process; starts and stops with a `with` block.

    Attributes:
        installation: From `find_installation`.
        repository: Model repository to serve.
        options: Further options of `tritonserver`.
        http: Address of its HTTP port, once running.
        grpc: Address of its gRPC port.
        metrics: Address of its metrics.
    """

    installation: Installation
    repository: Path
    options: tuple[str, ...] = ()
    http: str = field(init=False, default="")
    grpc: str = field(init=False, default="")
    metrics: str = field(init=False, default="")
    _folder: Path = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="amlr-triton-"))
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def _start(self) -> None:
        found = self.installation
        backends = self._folder / "backends" / "python"
        shutil.copytree(found.backend, backends)
        shutil.copy2(found.stub, backends)
        ports = free_ports(3)
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in ports)
        command = [
            str(found.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends.parent}",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            *(
                f"--{kind}-port={port}"
                for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)
            ),
            f"--exit-timeout-secs={STOP_S:.0f}",
            *self.options,
        ]
        environment = os.environ | {
            # The stub takes its interpreter from the path, and ignores PYTHONPATH.
            "PATH": f"{found.programs}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(map(str, found.libraries)),
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        end = time.monotonic() + READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self._end()
                raise BackendUnavailableError(f"tritonserver did not get ready:\n{self.log()}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def log(self) -> str:
        """What it printed, without its tables."""
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if line.strip() and line[0] not in "+|")

    def metric(self, name: str) -> float:
        """Sum of one metric over the versions of the model."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        start = f"{name}{{"
        found = [line for line in lines if line.startswith(start) and 'model="amlr"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def stop(self) -> int:
        """Ask it to stop, as a supervisor does, and wait.

        Returns:
            Its exit status.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(2 * STOP_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            url = f"http://{self.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status) == 200
        return False

    def _end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
            return
        self._process.kill()
        self._process.wait()

    def __exit__(self, *error: object) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)
