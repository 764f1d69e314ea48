"""A plain FastAPI server around the same engine, as one would write it without this one."""

import base64
from pathlib import Path
from typing import Any

import click
import uvicorn
from fastapi import FastAPI

from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post


def post_of(value: dict[str, Any]) -> Post:
    """A request's post."""
    image = value.get("image")
    return Post(value["text"], base64.b64decode(image) if image else None)


def plain_app(engine: Engine) -> FastAPI:
    """One engine call a request, in FastAPI's own thread pool."""
    app = FastAPI()

    @app.post("/v1/tag")
    def tag(value: dict[str, Any]) -> dict[str, Any]:
        return engine.tag_batch([post_of(value)])[0].to_dict()

    @app.get("/health")
    def health() -> str:
        return "ok"

    return app


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--threads", default=1)
@click.option("--provider", default="auto")
@click.option("--precision", default="auto")
@click.option("--port", type=int, required=True)
def main(bundle: Path, threads: int, provider: str, precision: str, port: int) -> None:
    """Serve the bundle on a port until SIGTERM."""
    engine = Engine.load(bundle, provider, precision, threads)
    uvicorn.run(plain_app(engine), port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
