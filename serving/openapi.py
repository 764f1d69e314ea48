"""`/openapi.json`: the interface's description, a file, with what only this server can say."""

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from amlr import __version__
from amlr.serving.guard import Route
from amlr.serving.service import TaggingService

FILE = Path(__file__).parent / "static" / "openapi.json"
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def description(service: TaggingService, prefix: str = "") -> dict[str, Any]:
    """The OpenAPI document of a server.

    Args:
        service: Its model and settings.
        prefix: Path that the application is served under.
    """
    text = FILE.read_text(encoding="utf-8")
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


ROUTES = [Route("/openapi.json", _openapi, methods=["GET"])]
