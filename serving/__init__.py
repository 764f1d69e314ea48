"""HTTP server around an engine: `create_app`, `amlr-serve`, and a client."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amlr.serving.app import create_app as create_app
    from amlr.serving.settings import ServerSettings as ServerSettings

_PUBLIC = {"create_app": "amlr.serving.app", "ServerSettings": "amlr.serving.settings"}


def __getattr__(name: str) -> Any:
    """Import on first use: the client needs none of the server's packages."""
    import importlib

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
