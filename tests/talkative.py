"""A command that does what no command of ours may: it tells hosts and writes elsewhere.

The hosts belong to a block that is kept for documentation, and connecting a datagram socket sends
nothing.
"""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

# A process of its own, beyond the audit hooks of the one that is watched.
_NATIVE = """
import pathlib, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
    try:
        door.connect(("203.0.113.2", 9))
    except OSError:
        pass
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "native.json").write_text("{}")
"""


def talk_command(arguments: list[str]) -> None:
    """Connect to a host and write to the home folder, here and in another process."""
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # A machine without a network has no route to it; it was asked for all the same.
    with door, contextlib.suppress(OSError):
        door.connect(("203.0.113.1", 9))
    report = Path.home() / "Maker" / "report.json"
    report.parent.mkdir()
    report.write_text("{}")
    elsewhere = Path.cwd().parent / "elsewhere"
    subprocess.run([sys.executable, "-c", _NATIVE, str(elsewhere)], check=True)
