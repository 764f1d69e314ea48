"""Paths of requests without the prefix that the application is served under."""

from starlette.types import Scope

STREAM_PATH = "/v1/tag/stream"
# Answered without a key: probes have none, and the page asks for one itself.
_OPEN = ("", "/", "/docs", "/openapi.json", "/favicon.ico")
_OPEN_BELOW = ("/static/", "/v2/health/")


def route_path(scope: Scope) -> str:
    """The path without the prefix (`root_path`) of a proxy or of a mounting application."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :]
    return path


def strip_repeated_prefix(scope: Scope) -> None:
    """Treat a proxy that keeps the prefix like one that removes it.

    uvicorn puts `root_path` before every path, also before one that has it already.
    """
    prefix, rest = str(scope.get("root_path", "")), route_path(scope)
    if prefix and (rest == prefix or rest.startswith(f"{prefix}/")):
        scope["path"] = rest


def is_v2(path: str) -> bool:
    """Whether a route path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def is_open(path: str) -> bool:
    """Whether a route path is answered without a key."""
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def is_quiet(path: str) -> bool:
    """Whether requests for a route path come too often for the log: probes, the page's files."""
    return path.startswith(_OPEN_BELOW)
