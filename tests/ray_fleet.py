"""A Ray Serve fleet for tests: deployed by configuration, as an operator would."""

import time
from typing import Any

from amlr.serving.ray.arguments import BundleChoice, FleetArguments
from amlr.serving.ray.deployment import DEPLOYMENT

_APP = "amlr"


class Fleet:
    """An application on the cluster that `ray.init` has started.

    Attributes:
        port: Of the proxy, on the loopback interface.
    """

    def __init__(self, arguments: FleetArguments, port: int) -> None:
        """Start the proxy; `deploy` brings the replicas."""
        from ray import serve

        self._arguments, self.port = arguments, port
        serve.start(http_options={"host": "127.0.0.1", "port": port})

    def deploy(self) -> None:
        """Deploy and wait until every replica is ready."""
        self._apply(self._arguments.choice)
        self._wait()

    def change(self, engine: str) -> None:
        """Name another bundle and return at once; replicas change one after the other."""
        self._apply(BundleChoice(engine=engine))

    def status(self) -> list[dict[str, Any]]:
        """What each running replica says of itself; none where none can be asked just now."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            response = serve.get_app_handle(_APP).broadcast("status")
            found: list[dict[str, Any]] = response.results(timeout_s=30)
        # One is being changed, or has just been killed and is still counted.
        except (RayError, RayServeException):
            return []
        return found

    def pids(self) -> list[int]:
        """Processes of the replicas that Serve counts as running."""
        from ray import serve

        details = serve.status().applications[_APP].deployments[DEPLOYMENT]
        if details.replica_states != {"RUNNING": sum(details.replica_states.values())}:
            return []
        return sorted(status["pid"] for status in self.status())

    def _apply(self, choice: BundleChoice) -> None:
        """The configuration that `serve deploy` and `serve run FILE` send.

        Only `user_config` names the bundle in force, so that changing it restarts nothing.
        """
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": _APP,
            "route_prefix": "/",
            "import_path": "amlr.serving.ray:build",
            "args": self._arguments.model_dump(mode="json"),
            "deployments": [{"name": DEPLOYMENT, "user_config": choice.model_dump()}],
        }
        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config, _blocking=False)

    def _wait(self) -> None:
        from ray import serve

        while True:
            application = serve.status().applications.get(_APP)
            state = "" if application is None else str(application.status.value)
            if state == "RUNNING":
                return
            if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                assert application is not None
                raise RuntimeError(f"{state}: {application.message}")
            time.sleep(0.1)
