"""Routes that parse by hand and answer with a finished response, without FastAPI's machinery."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response


class DirectRoute(APIRoute):
    """Documented like any route, but calls `endpoint(request)` straight away.

    Solving dependencies that there are none of costs as much as parsing a post without a picture.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint
