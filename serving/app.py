"""`create_app`: the whole HTTP interface around an engine, for any ASGI server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from amlr import __version__
from amlr.serving import explaining, page, routes_v1, routes_v2
from amlr.serving.explaining import ExplainQueue
from amlr.serving.guard import Guard
from amlr.serving.jobs import TaggingEngine
from amlr.serving.problems import ApiError
from amlr.serving.schemas import component_schemas, errors
from amlr.serving.service import TaggingService
from amlr.serving.settings import ServerSettings
from amlr.serving.urls import UrlFetcher

_DESCRIPTION = (
    "Named entities in posts of text and picture. Bodies may be compressed (`Content-Encoding: "
    "gzip` or `deflate`); limits count inflated bytes. HEAD is answered wherever GET is. "
)
# Keys come in headers, so no page ever needs cookies.
_CORS: dict[str, Any] = {
    "allow_credentials": False,
    "allow_methods": ["GET", "HEAD", "POST"],
    "allow_headers": [
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "Inference-Header-Content-Length",
        "X-API-Key",
        "X-Deadline-Ms",
        "X-Request-Id",
    ],
    "expose_headers": [
        "Inference-Header-Content-Length",
        "Retry-After",
        "Server-Timing",
        "X-Request-Id",
    ],
}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(engine: TaggingEngine, settings: ServerSettings | None = None) -> FastAPI:
    """Make an application that serves an engine.

    The engine stays the caller's: close it after the server has stopped.

    Args:
        engine: A loaded `amlr.runtime.Engine`.
        settings: Settings; None takes the defaults.

    Returns:
        An ASGI application. Its lifespan starts and stops the workers; it is ready some seconds
        after its start, when the engine has been warmed up and measured.

    Example:
        >>> app = create_app(Engine.load("amlr.plan"))  # doctest: +SKIP
        >>> uvicorn.run(app)  # doctest: +SKIP
    """
    service = TaggingService(engine, settings)
    settings = service.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start(app.state.explain_queue.warm_up)
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)
            app.state.explain_queue.close()

    app = FastAPI(
        title="amlr",
        version=__version__,
        description=_DESCRIPTION + _who_may_ask(settings.cors_origins),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.fetcher = UrlFetcher(settings.urls, settings.limits.max_image_bytes)
    app.state.explain_queue = ExplainQueue(engine, settings.batch)
    app.include_router(routes_v1.router)
    app.include_router(explaining.router)
    app.include_router(routes_v2.router)
    if settings.page:
        app.include_router(page.router)
    _add_metrics(app)
    app.add_middleware(Guard, service=service)
    if settings.cors_origins:
        # Around the guard: browsers ask beforehand without a key, and must be able to read its 401.
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    app.add_exception_handler(HTTPException, _on_http_error)
    _describe(app, has_keys=bool(settings.api_keys))
    return app


def _who_may_ask(origins: tuple[str, ...]) -> str:
    if not origins:
        return "Pages of other origins may not ask (no CORS)."
    named = "any origin" if "*" in origins else ", ".join(origins)
    return f"Pages of {named} may ask from a browser (CORS), without cookies."


def _add_metrics(app: FastAPI) -> None:
    described: dict[int | str, dict[str, object]] = {
        200: {
            "description": "Text for Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }

    @app.get(
        "/metrics",
        tags=["operation"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={**described, **errors(401)},
    )
    async def metrics(request: Request) -> Response:
        """Text exposition format."""
        content = request.app.state.service.metrics.text()
        return Response(content, media_type=_METRICS_TYPE)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Turn the framework's own refusals into ours, which the guard answers."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "http_error")
    raise ApiError(error.status_code, code, str(error.detail), dict(error.headers or {}))


def _describe(app: FastAPI, *, has_keys: bool) -> None:
    """OpenAPI: add the schemas that routes parse by hand, and how to send the key."""

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {}).update(component_schemas())
            _name_model(schema, app.state.service.model_name)
            _add_head(schema)
            if has_keys:
                components["securitySchemes"] = {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                }
                schema["security"] = [{"bearer": []}, {"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_model(schema: dict[str, Any], name: str) -> None:
    """There is one model, so its name is no secret of the description."""
    for path, operations in schema["paths"].items():
        if "{name}" in path:
            for operation in operations.values():
                for parameter in operation.get("parameters", ()):
                    if parameter["name"] == "name":
                        parameter["schema"]["enum"] = [name]


def _add_head(schema: dict[str, Any]) -> None:
    """The guard answers HEAD as GET, without the body."""
    for operations in schema["paths"].values():
        if "get" not in operations:
            continue
        get = operations["get"]
        operations["head"] = {
            **get,
            "operationId": f"{get['operationId']}_head",
            "summary": f"{get['summary']} (status and headers only)",
            "responses": {
                status: {"description": answer["description"]}
                for status, answer in get["responses"].items()
            },
        }
