"""The page at `/` and the interface, readable, at `/docs`: static files, nothing fetched."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from amlr.serving.guard import Route

STATIC = Path(__file__).parent / "static"
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


ROUTES = [
    Route("/", _index, methods=["GET"]),
    Route("/docs", _docs, methods=["GET"]),
    Route("/static/{name}", _static, methods=["GET"]),
]
