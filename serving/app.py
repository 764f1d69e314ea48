"""`create_app`: the whole HTTP interface around an engine, for any ASGI server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from amlr.serving import answers, explaining, page, routes_v2, stream
from amlr.serving.explaining import ExplainQueue
from amlr.serving.guard import Guard, Route
from amlr.serving.jobs import TaggingEngine
from amlr.serving.problems import ApiError
from amlr.serving.service import TaggingService
from amlr.serving.settings import ServerSettings
from amlr.serving.urls import UrlFetcher

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


def create_app(engine: TaggingEngine, settings: ServerSettings | None = None) -> Starlette:
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
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start(app.state.explain_queue.warm_up)
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)
            app.state.explain_queue.close()

    routes = [*answers.ROUTES, *stream.ROUTES, *explaining.ROUTES, *routes_v2.ROUTES, _METRICS]
    routes.append(page.OPENAPI)
    middleware = [Middleware(Guard, service=service)]
    if settings.page:
        routes += page.ROUTES
    if settings.cors_origins:
        # Around the guard: browsers ask beforehand without a key, and must be able to read its 401.
        cors = Middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
        middleware.insert(0, cors)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _on_http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.fetcher = UrlFetcher(settings.urls, settings.limits.max_image_bytes)
    app.state.explain_queue = ExplainQueue(engine, settings.batch)
    return app


async def _metrics(request: Request) -> Response:
    content = request.app.state.service.metrics.text()
    return Response(content, media_type=_METRICS_TYPE)


_METRICS = Route("/metrics", _metrics, methods=["GET"])


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Turn the framework's own refusals into ours, which the guard answers."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "http_error")
    raise ApiError(error.status_code, code, str(error.detail), dict(error.headers or {}))
