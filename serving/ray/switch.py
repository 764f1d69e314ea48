"""Changing the bundle under traffic: the new engine is ready before the old one is let go."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amlr.errors import AmlrError
from amlr.runtime import Engine
from amlr.serving.app import create_app
from amlr.serving.problems import ApiError, error_response
from amlr.serving.service import State, TaggingService
from amlr.serving.settings import ServerSettings

LOG = logging.getLogger("amlr.serving.ray.switch")
_POLL_S = 0.02
MANIFEST_HEADER = "X-Amlr-Manifest"
_NO_BUNDLE = ApiError(503, "starting", "no bundle is loaded yet", {"Retry-After": "1"})


@dataclass(eq=False, slots=True)
class Slot:
    """One engine with its application.

    Attributes:
        engine: The engine.
        app: The application around it.
        service: Its queue and workers.
        life: Its lifespan, entered while it serves.
        active: Requests under way.
    """

    engine: Engine
    app: ASGIApp
    service: TaggingService
    life: AbstractAsyncContextManager[Any]
    active: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class BundleSwitch:
    """An ASGI application around the engine of the moment; all calls from one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        """Serve nothing yet; `change` brings the first engine."""
        self._settings = settings
        self._slot: Slot | None = None
        self._changing = asyncio.Lock()
        self._closed = False

    @property
    def service(self) -> TaggingService | None:
        """The service of the moment."""
        return None if self._slot is None else self._slot.service

    @property
    def manifest_sha256(self) -> str | None:
        """Hash of the bundle in service."""
        return None if self._slot is None else self._slot.engine.bundle.manifest_sha256

    async def change(self, load: Callable[[], Engine]) -> None:
        """Load a bundle beside the one in service, warm it up, send new requests to it.

        Requests under way stay with the engine that took them; it is closed when they are answered,
        or after `shutdown_s`. On any failure the old one goes on serving.

        Args:
            load: Opens the engine, golden check included; runs in a thread.

        Raises:
            AmlrError: The new bundle cannot be served.
        """
        async with self._changing:
            if self._closed:
                raise AmlrError("the replica is stopping")
            new = await self._open(load)
            old, self._slot = self._slot, new
            if old is not None:
                LOG.info("bundle changed", extra={"sha256": self.manifest_sha256})
                await self._retire(old)

    async def _open(self, load: Callable[[], Engine]) -> Slot:
        engine = await asyncio.to_thread(load)
        try:
            app = create_app(engine, self._settings)
            slot = Slot(engine, app, app.state.service, app.router.lifespan_context(app))
            await slot.life.__aenter__()
        except BaseException:
            engine.close()
            raise
        # Measured before it is asked anything: admission must know what work costs.
        while not slot.service.ready:
            if slot.service.reason is not None or slot.service.state is State.FAILING:
                reason = slot.service.reason
                await self._retire(slot)
                raise AmlrError(f"the engine cannot be warmed up: {reason}")
            await asyncio.sleep(_POLL_S)
        return slot

    async def _retire(self, slot: Slot) -> None:
        begun = time.monotonic()
        if slot.active:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.idle.wait(), self._settings.shutdown_s)
        await slot.life.__aexit__(None, None, None)
        if slot.service.finished:
            slot.engine.close()
        LOG.info(
            "engine retired",
            extra={"left": slot.active, "seconds": round(time.monotonic() - begun, 3)},
        )

    async def close(self) -> None:
        """Finish what is under way and close the engine."""
        self._closed = True
        async with self._changing:
            slot, self._slot = self._slot, None
            if slot is not None:
                await self._retire(slot)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with the engine of the moment."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        slot = self._slot
        if slot is None:
            await error_response(_NO_BUNDLE, "")(scope, receive, send)
            return
        digest = slot.engine.bundle.manifest_sha256[:12]

        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[MANIFEST_HEADER] = digest
                # Ray's replica adds the same one, which its proxy had handed to the guard.
                del headers["x-request-id"]
            await send(message)

        slot.active += 1
        slot.idle.clear()
        try:
            await slot.app(scope, receive, send_answer)
        finally:
            slot.active -= 1
            if not slot.active:
                slot.idle.set()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """The first engine comes with the first configuration, after the startup."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})
