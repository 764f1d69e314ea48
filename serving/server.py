"""uvicorn, made to stop as a service should: unready first, accepted work finished, exit code 0."""

import asyncio
import gc
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from amlr.serving.service import TaggingService

# As the usual balancers: they must be the ones to drop idle connections, or a request may meet a
# connection that is just being closed.
KEEP_ALIVE_S = 75
_BACKLOG = 2048
# How long a worker's Python code may run while the event loop waits for its turn. A request takes
# several turns, with every worker ahead of it each time: at Python's own 5 ms even a probe is slow.
_TURN_S = 0.001


def keep_turns_short() -> None:
    """Let no thread of this process keep the event loop waiting for long; called once loaded.

    What is loaded stays: looking through it for garbage again and again stops everybody for 50 ms.
    """
    sys.setswitchinterval(_TURN_S)
    gc.collect()
    gc.freeze()


class Server(uvicorn.Server):
    """Serves one application until SIGTERM or SIGINT; a second signal ends it at once."""

    def __init__(self, app: Starlette, *, drain_s: float = 0.0, **options: Any) -> None:
        """Prepare.

        Args:
            app: From `create_app`.
            drain_s: How long to go on accepting while already unready, so that balancers notice.
            **options: For `uvicorn.Config`, e.g. host and port.
        """
        self._service: TaggingService = app.state.service
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        settings = self._service.settings
        options.setdefault("http", timed_protocol(settings.limits.header_timeout_s))
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.shutdown_s) + 1,
            **options,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; from here on signals go through the event loop."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. Runs between any two instructions, so it only leaves a note."""
        if self._loop is None:
            self.should_exit = True
        elif self._asked:
            self.should_exit = self.force_exit = True
        else:
            self._asked = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        assert self._loop is not None
        self._service.begin_stopping()
        self._loop.call_later(self._drain_s, self._leave)

    def _leave(self) -> None:
        self.should_exit = True


_Base: Any = AutoHTTPProtocol


class TimedProtocol(_Base):  # type: ignore[misc]
    """uvicorn's protocol, but a client that is slow to send a request's head is cut off."""

    head_timeout_s = 10.0
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take data; part of a head starts the timer, a complete one stops it."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(error)

    def _awaits_head(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _watch_head(self) -> None:
        if not self._awaits_head():
            self._stop_timer()
        elif self.head_timer is None:
            self.head_timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self.head_timer = None
        if self._awaits_head() and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


def timed_protocol(timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol with a certain patience."""
    return type("TimedProtocol", (TimedProtocol,), {"head_timeout_s": timeout_s})
