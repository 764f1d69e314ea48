"""A real server on the loopback interface, in a thread of the test's process."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx

from amlr.serving.app import create_app
from amlr.serving.server import Server
from amlr.serving.settings import ServerSettings


class LiveServer:
    """Runs until the end of its `with` block."""

    def __init__(self, engine: Any, settings: ServerSettings | None = None, **options: Any) -> None:
        self.app = create_app(engine, settings)
        self.service = self.app.state.service
        self._server = Server(self.app, host="127.0.0.1", port=0, **options)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", int(self._server.servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Its address."""
        return "http://{}:{}".format(*self.address)

    def __enter__(self) -> Self:
        self._thread.start()
        end = time.monotonic() + 60
        while not (self._server.started and self.service.ready):
            assert self._thread.is_alive(), "the server ended while starting"
            assert time.monotonic() < end, f"not ready: {self.service.reason}"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does, and wait."""
        self._server.handle_exit(15, None)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def client(self, **options: Any) -> httpx.Client:
        """A plain HTTP client of it."""
        return httpx.Client(base_url=self.url, timeout=30, **options)
