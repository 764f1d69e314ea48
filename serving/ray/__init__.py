"""A fleet of engines on Ray Serve, with the HTTP interface of `amlr-serve`.

    AMLR_ENGINE=amlr.plan serve run amlr.serving.ray:app
    serve run amlr.serving.ray:build engine=s3://models/amlr.plan replicas=4

`import ray` inside this package is the library: all imports of this project are absolute.
"""

from typing import Any

from amlr.serving.ray.arguments import BundleChoice as BundleChoice
from amlr.serving.ray.arguments import FleetArguments as FleetArguments
from amlr.serving.ray.bundles import fetch_bundle as fetch_bundle
from amlr.serving.ray.deployment import app_from_environment
from amlr.serving.ray.deployment import build as build


def __getattr__(name: str) -> Any:
    """`app` is built from the environment when it is asked for."""
    if name == "app":
        return app_from_environment()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
