"""Commands in one process under Python's audit hooks: every host asked for, every file written.

`python watched.py REPORT PORT`, with a JSON list of [module, attribute, arguments] on stdin. What
native libraries and other processes do is beyond the hooks; the test watches with strace as well.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto")
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch() -> tuple[list[str], list[str]]:
    """Start watching; gives the lists that will hold peers and paths."""
    peers: list[str] = []
    paths: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _LOOKED_UP:
            place = args[0] if event.startswith("socket.get") else args[1]
            peers.append(str(place[0] if isinstance(place, tuple) else place))
        is_change = event in _CHANGES or (event == "open" and args[2] & _WRITING)
        if is_change and isinstance(args[0], str | bytes | Path):
            paths.append(str(Path(os.fsdecode(args[0])).absolute()))

    sys.addaudithook(hook)
    return peers, paths


def ask_server(port: int) -> None:
    """Tag one post over HTTP once the server is ready, then ask it to stop."""
    import httpx

    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                break
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/tag", json={"text": "Jordan in Paris"})
    print(answer.status_code, file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the commands; write what was seen."""
    report, port = Path(sys.argv[1]), int(sys.argv[2])
    commands = json.load(sys.stdin)
    peers, paths = watch()
    for module, attribute, arguments in commands:
        if attribute == "serve_command":
            threading.Thread(target=ask_server, args=(port,), daemon=True).start()
        try:
            getattr(importlib.import_module(module), attribute)(arguments)
        except SystemExit as end:
            if end.code:
                raise
    # The reporters work in threads of their own.
    time.sleep(0.5)
    report.write_text(json.dumps({"peers": peers, "paths": paths}))


if __name__ == "__main__":
    main()
