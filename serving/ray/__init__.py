"""A fleet of engines on Ray Serve, with the HTTP interface of `amlr-serve`.

    AMLR_ENGINE=amlr.plan serve run amlr.serving.ray:app
    serve run amlr.serving.ray:build engine=s3://models/amlr.plan replicas=4

`import ray` inside this package is the library: all imports of this project are absolute.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amlr.serving.ray.arguments import BundleChoice as BundleChoice
    from amlr.serving.ray.arguments import FleetArguments as FleetArguments
    from amlr.serving.ray.bundles import fetch_bundle as fetch_bundle
    from amlr.serving.ray.deployment import build as build

_PUBLIC = {
    "BundleChoice": "amlr.serving.ray.arguments",
    "FleetArguments": "amlr.serving.ray.arguments",
    "build": "amlr.serving.ray.deployment",
    "fetch_bundle": "amlr.serving.ray.bundles",
}


def __getattr__(name: str) -> Any:
    """Import on first use; `app` is built from the environment when it is asked for."""
    import importlib

    if name == "app":
        from amlr.serving.ray.deployment import app_from_environment

        return app_from_environment()
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
