"""The page at `/` and the interface, readable, at `/docs`: static files, nothing fetched."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)
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


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/docs")
async def docs() -> Response:
    """The interface, readable."""
    return _file("docs.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A file of the page."""
    return _file(name) if name in _FILES else Response(status_code=404)
