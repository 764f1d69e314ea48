"""The page at `/`, and the interface at `/docs` for people and at `/openapi.json` for machines.

Static files, nothing fetched; the description is filled with what only this server can say.
"""

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from amlr import __version__
from amlr.serving.guard import Route
from amlr.serving.service import TaggingService

STATIC = Path(__file__).parent / "static"
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = {path.name: path for path in STATIC.iterdir() if path.suffix in _TYPES}
# Nothing from elsewhere, nothing inline: what a post says can never become part of the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _file(name: str) -> Response:
    return FileResponse(
        _FILES[name],
        headers={
            "Content-Security-Policy": _POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        },
        media_type=_TYPES[_FILES[name].suffix],
    )


async def _index(_: Request) -> Response:
    return _file("index.html")


async def _docs(_: Request) -> Response:
    return _file("docs.html")


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    return _file(name) if name in _FILES else Response(status_code=404)


def description(service: TaggingService, prefix: str = "") -> dict[str, Any]:
    """The OpenAPI document of a server.

    Args:
        service: Its model and settings.
        prefix: Path that the application is served under.
    """
    text = (STATIC / "openapi.json").read_text(encoding="utf-8")
    values = {
        "VERSION": __version__,
        # There is one model, so its name is no secret of the description.
        "MODEL": service.model_name,
        "ORIGINS": _who_may_ask(service.settings.cors_origins),
    }
    for name, value in values.items():
        text = text.replace(f"%{name}%", json.dumps(value)[1:-1])
    document: dict[str, Any] = json.loads(text)
    for operations in document["paths"].values():
        if "get" in operations:
            operations["head"] = _head(operations["get"])
    if service.settings.api_keys:
        document["components"]["securitySchemes"] = _KEY_SCHEMES
        document["security"] = [{name: []} for name in _KEY_SCHEMES]
    if prefix:
        document["servers"] = [{"url": prefix}]
    return document


def _head(get: dict[str, Any]) -> dict[str, Any]:
    """HEAD is answered as GET, without the body."""
    return {
        **get,
        "operationId": f"{get['operationId']}_head",
        "summary": f"{get['summary']} (status and headers only)",
        "responses": {status: {"description": "As of GET."} for status in get["responses"]},
    }


def _who_may_ask(origins: tuple[str, ...]) -> str:
    if not origins:
        return "Pages of other origins may not ask (no CORS)."
    named = "any origin" if "*" in origins else ", ".join(origins)
    return f"Pages of {named} may ask from a browser (CORS), without cookies."


async def _openapi(request: Request) -> Response:
    prefix = request.scope.get("root_path", "").rstrip("/")
    return JSONResponse(description(request.app.state.service, prefix))


OPENAPI = Route("/openapi.json", _openapi, methods=["GET"])
ROUTES = [
    Route("/", _index, methods=["GET"]),
    Route("/docs", _docs, methods=["GET"]),
    Route("/static/{name}", _static, methods=["GET"]),
]
