"""One replica: an engine pinned to its cores behind the server's own queue and routes.

Ray Serve starts it in this order: constructor, lifespan of the door, `reconfigure` with the bundle,
`check_health`. Only then does it get requests, so it is ready when its golden check has passed.
"""

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from amlr.errors import AmlrError
from amlr.runtime import Engine
from amlr.serving.logs import configure
from amlr.serving.ray.arguments import BundleChoice, FleetArguments
from amlr.serving.ray.bundles import fetch_bundle, locked
from amlr.serving.ray.switch import BundleSwitch
from amlr.serving.service import State
from amlr.serving.settings import environment_keys

LOG = logging.getLogger("amlr.serving.ray.replica")
# A process holds one replica; its door finds it here.
_HERE: dict[str, "Tagger"] = {}


class Door:
    """The ASGI application given to Ray Serve; it travels to the replica without any state."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand over to the replica of this process."""
        await _HERE["replica"].switch(scope, receive, send)


class Tagger:
    """The deployment.

    Attributes:
        switch: The engine of the moment.
        refused: Why the last change of the bundle failed; None where it did not.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Take cores; `reconfigure` brings the bundle.

        Args:
            arguments: Of `FleetArguments`.
        """
        self._arguments = FleetArguments.parse(arguments)
        configure(self._arguments.log_level)
        self.cores: tuple[int, ...] = ()
        if self._arguments.pin:
            folder = self._arguments.cache_dir.expanduser() / "cores"
            self.cores = claim_cores(folder, self._arguments.cores)
            if not self.cores:
                LOG.warning("no free cores to pin this replica to")
        # Keys come from the environment, because Ray's dashboard shows arguments.
        self.switch = BundleSwitch(self._arguments.server_settings(environment_keys()))
        self.refused: str | None = None
        self._choice: BundleChoice | None = None
        self._wanted: dict[str, Any] = {}
        self._change: asyncio.Task[None] | None = None
        _HERE["replica"] = self

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve the bundle that the configuration names.

        Ray Serve sends nothing to a replica while its `reconfigure` runs, and stops one whose
        `reconfigure` raises: with one replica every request would wait for the load, and a bad
        bundle would take down the fleet. Therefore only the first bundle is loaded here. Later ones
        are loaded in the background, and one that fails leaves the old one in service; `status`
        and the log tell.

        Args:
            config: Of `BundleChoice`.

        Raises:
            AmlrError: The first bundle cannot be served.
        """
        if self.switch.service is None:
            choice = BundleChoice.parse(config)
            await self.switch.change(partial(self._load, choice))
            self._choice = choice
            return
        self._wanted = config
        if not self._is_changing:
            self._change = asyncio.create_task(self._follow())

    @property
    def _is_changing(self) -> bool:
        return self._change is not None and not self._change.done()

    async def _follow(self) -> None:
        """Change to the bundle that is wanted, and again where that changed meanwhile."""
        tried: dict[str, Any] | None = None
        while tried is not self._wanted:
            tried = self._wanted
            try:
                choice = BundleChoice.parse(tried)
                if choice != self._choice:  # Serve repeats itself
                    await self.switch.change(partial(self._load_in_turn, choice))
                    self._choice, self.refused = choice, None
            # A library under the engine may fail in any way of its own.
            except Exception as error:
                self.refused = str(error) if isinstance(error, AmlrError) else type(error).__name__
                LOG.exception("bundle refused; the old one stays in service")

    def _load_in_turn(self, choice: BundleChoice) -> Engine:
        """One replica of a node at a time, so that the others keep their speed."""
        with locked(self._arguments.cache_dir.expanduser() / "change.lock"):
            return self._load(choice)

    def _load(self, choice: BundleChoice) -> Engine:
        arguments = self._arguments
        path = fetch_bundle(choice.engine, arguments.cache_dir, choice.manifest_sha256)
        return Engine.load(
            path, manifest_sha256=choice.manifest_sha256, **asdict(arguments.engine_options)
        )

    async def check_health(self) -> None:
        """Ask for a new replica where the engine fails on every batch.

        Raises:
            AmlrError: It does, or a worker is missing.
        """
        service = self.switch.service
        if service is not None and service.state is State.FAILING:
            raise AmlrError(f"the service is failing: {service.reason}")

    async def status(self) -> dict[str, Any]:
        """The state of this replica as plain values; ask all with a handle's `broadcast`."""
        service = self.switch.service
        return {
            "pid": os.getpid(),
            "cores": list(self.cores),
            "engine": None if self._choice is None else self._choice.engine,
            "manifest_sha256": self.switch.manifest_sha256,
            "changing": self._is_changing,
            "refused": self.refused,
            "state": None if service is None else str(service.state),
            "waiting_posts": 0 if service is None else len(service.queue),
        }


def claim_cores(folder: Path, count: int) -> tuple[int, ...]:
    """Pin this process to cores that no other replica of this node holds, until it ends.

    Args:
        folder: Where this node's replicas keep their locks.
        count: How many cores are wanted.

    Returns:
        The cores. Where fewer are free, none, and nothing is pinned: half a claim would be slower.
    """
    # Neither macOS nor Windows pins processes this way.
    if sys.platform != "linux":
        return ()
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    # Locks are held by the open files, which nothing but the end of the process closes.
    held: dict[int, int] = {}
    for core in sorted(os.sched_getaffinity(0)):
        handle = os.open(folder / f"core-{core}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            continue
        held[core] = handle
        if len(held) == count:
            pin_process(tuple(held))
            return tuple(held)
    for handle in held.values():
        os.close(handle)
    return ()


def pin_process(cores: tuple[int, ...]) -> None:
    """Pin every thread there is; threads that start later inherit it."""
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)
