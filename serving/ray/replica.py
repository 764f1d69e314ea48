"""One replica: an engine pinned to its cores behind the server's own queue and routes.

Ray Serve starts it in this order: constructor, lifespan of the door, `reconfigure` with the bundle,
`check_health`. Only then does it get requests, so it is ready when its golden check has passed.
"""

import logging
import os
from typing import Any

from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from amlr.errors import AmlrError, InputError
from amlr.runtime import Engine
from amlr.serving.logs import configure
from amlr.serving.ray.arguments import BundleChoice, FleetArguments, one_line
from amlr.serving.ray.bundles import fetch_bundle
from amlr.serving.ray.cores import CoreClaim
from amlr.serving.ray.switch import BundleSwitch
from amlr.serving.service import State

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
        cache_dir = self._arguments.cache_dir
        self._claim = (
            CoreClaim(cache_dir / "cores", self._arguments.cores) if self._arguments.pin else None
        )
        self.cores = self._claim.cores if self._claim else ()
        if self._claim and not self.cores:
            LOG.warning("no free cores to pin this replica to")
        self.switch = BundleSwitch(self._arguments.server_settings(_api_keys()))
        self.refused: str | None = None
        self._address: str | None = None
        _HERE["replica"] = self

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve the bundle that the configuration names.

        Ray Serve stops a replica whose `reconfigure` raises; a bad bundle would so take down one
        replica after another. Therefore only the first bundle may fail this way; afterwards the one
        in service stays, and `status` and the log say why.

        Args:
            config: Of `BundleChoice`.

        Raises:
            AmlrError: The first bundle cannot be served.
        """
        try:
            choice = _choice(config)
            await self.switch.change(lambda: self._load(choice))
        # A library under the engine may fail in any way of its own.
        except Exception as error:
            if self.switch.service is None:
                raise
            self.refused = str(error) if isinstance(error, AmlrError) else type(error).__name__
            LOG.exception("bundle refused; the old one stays in service")
            return
        self.refused, self._address = None, choice.engine

    def _load(self, choice: BundleChoice) -> Engine:
        arguments = self._arguments
        path = fetch_bundle(choice.engine, arguments.cache_dir, choice.manifest_sha256)
        return Engine.load(
            path,
            provider=arguments.provider,
            precision=arguments.precision,
            threads=1,
            image_cache_mb=arguments.image_cache_mb,
            manifest_sha256=choice.manifest_sha256,
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
        """What this replica serves, as plain values; ask all with a handle's `broadcast`."""
        service = self.switch.service
        return {
            "pid": os.getpid(),
            "cores": list(self.cores),
            "engine": self._address,
            "manifest_sha256": self.switch.manifest_sha256,
            "refused": self.refused,
            "state": None if service is None else str(service.state),
            "waiting_posts": 0 if service is None else len(service.queue),
        }


def _choice(config: dict[str, Any]) -> BundleChoice:
    try:
        return BundleChoice.model_validate(config)
    except ValidationError as error:
        raise InputError(f"user_config: {one_line(error)}") from error


def _api_keys() -> tuple[str, ...]:
    """From the environment: arguments are shown by Ray's dashboard."""
    found = os.environ.get("AMLR_API_KEYS", "").split(",")
    return tuple(key.strip() for key in found if key.strip())
