"""The Serve application: made from typed arguments, or from the environment."""

import os
from typing import Any

from amlr.errors import BackendUnavailableError, InputError
from amlr.extras import require_extra
from amlr.serving.ray.arguments import FleetArguments

_PREFIX = "AMLR_"
DEPLOYMENT = "Tagger"


def build(arguments: FleetArguments) -> Any:
    """Make the application; `serve run amlr.serving.ray:build engine=amlr.plan replicas=2`.

    The bundle's address is the deployment's `user_config`, so a configuration file changes it
    without restarting replicas.

    Args:
        arguments: What to serve and how.

    Returns:
        A `ray.serve` application.

    Raises:
        BackendUnavailableError: Ray or a package of the server is missing.

    Example:
        >>> serve.run(build(FleetArguments(engine="amlr.plan")))  # doctest: +SKIP
    """
    require_extra(
        "amlr.serving.ray",
        "ray",
        "starlette",
        "prometheus_client",
        "python_multipart",
        "ray.serve",
        error_class=BackendUnavailableError,
    )
    from ray import serve

    from amlr.serving.ray.replica import Door, Tagger

    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": arguments.cores, "num_gpus": arguments.gpus},
        user_config=arguments.choice.model_dump(),
        max_ongoing_requests=arguments.max_ongoing_requests,
        max_queued_requests=arguments.queue_posts,
        graceful_shutdown_timeout_s=arguments.shutdown_s + 5.0,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        **_size(arguments),
    )
    values = arguments.model_dump(mode="json")
    return deployment(serve.ingress(Door())(Tagger)).bind(values)


def _size(arguments: FleetArguments) -> dict[str, Any]:
    """A fixed number of replicas, or one that follows the queue."""
    if arguments.max_replicas is None:
        return {"num_replicas": arguments.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": arguments.replicas,
            "max_replicas": arguments.max_replicas,
            # Serve counts requests being answered and those waiting at the proxies. One batch a
            # thread keeps the engine busy; what is beyond it waits.
            "target_ongoing_requests": arguments.batch_requests,
            "upscale_delay_s": arguments.upscale_delay_s,
            "downscale_delay_s": arguments.downscale_delay_s,
        }
    }


def app_from_environment() -> Any:
    """The application of `serve run amlr.serving.ray:app`.

    Every argument of `FleetArguments` may be given as `AMLR_<NAME>`; `AMLR_ENGINE` must be.

    Raises:
        InputError: The bundle is not named, or a value is wrong.
    """
    values = {
        name: os.environ[_PREFIX + name.upper()]
        for name in FleetArguments.model_fields
        if os.environ.get(_PREFIX + name.upper())
    }
    if "engine" not in values:
        raise InputError(
            "AMLR_ENGINE names no bundle; set it to a folder or an address, or use: "
            "serve run amlr.serving.ray:build engine=ADDRESS"
        )
    return build(FleetArguments.parse(values))
