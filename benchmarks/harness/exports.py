"""The one-graph ONNX files that plain peers read, written by a process of its own.

Apart, so that neither this command nor the peers carry the exporter's memory.
"""

import subprocess
import sys
from pathlib import Path

from amlr.benchmarks.harness.process import worker_environment
from amlr.benchmarks.harness.remote import PeerError

_PROGRAM = "amlr.benchmarks.harness.exports"
_TIMEOUT_S = 900


def start_export(bundle: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Begin writing the files, unless they are there; other work may go on meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, bundle, str(folder)],
        env=worker_environment(1),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish_export(process: "subprocess.Popen[bytes]", seconds: float = _TIMEOUT_S) -> None:
    """Wait for the files.

    Args:
        process: What `start_export` gave.
        seconds: Longest wait.

    Raises:
        PeerError: The plain model could not be exported.
    """
    try:
        _, stderr = process.communicate(timeout=min(seconds, _TIMEOUT_S))
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise PeerError("the one-graph export took too long") from error
    if process.returncode:
        lines = stderr.decode(errors="replace").strip().splitlines()
        raise PeerError(f"the one-graph export failed: {lines[-1] if lines else 'no reason given'}")


def write_plain_graphs(bundle: str, folder: Path) -> None:
    """Export the plain model of a bundle, unless a finished export of it is there."""
    done = folder / "done"
    if done.exists():
        return
    from amlr.benchmarks.systems.torch_models import plain_graphs
    from amlr.export.eager import load_reference
    from amlr.export.to_onnx import write_graphs
    from amlr.runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    model = load_reference(opened)
    write_graphs(plain_graphs(model, opened.manifest), folder)
    done.touch()


if __name__ == "__main__":
    write_plain_graphs(sys.argv[1], Path(sys.argv[2]))
