"""Servers to compare with: `python -m amlr.benchmarks.load.peers --kind K --port N`.

`plain` is a FastAPI server as one would write it without this project, `idle` the real server
around an engine that answers at once (what HTTP, JSON and the queue cost).
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import uvicorn
from fastapi import FastAPI

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.runtime import Engine, Post, Result
from amlr.serving.app import create_app
from amlr.serving.server import Server
from amlr.serving.settings import ServerSettings


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


class IdleEngine:
    """An engine that finds nothing, in no time."""

    provider, precision = "idle", "none"

    def tag_batch(self, posts: Iterable[Post]) -> list[Result]:
        """No entities."""
        return [
            Result(
                entities=(), image_used=post.image is not None, provider="idle", precision="none"
            )
            for post in posts
        ]


@click.command(cls=AmlrCommand)
@click.option("--kind", type=click.Choice(["plain", "idle"]), default="plain")
@click.option("--engine", "bundle", type=click.Path(path_type=Path), help="`plain` needs it.")
@click.option("--threads", default=1)
@click.option("--provider", default="auto")
@click.option("--precision", default="auto")
@click.option("--port", type=int, required=True)
def main(
    kind: str, bundle: Path | None, threads: int, provider: str, precision: str, port: int
) -> None:
    """Serve on the loopback interface until SIGTERM."""
    if kind == "idle":
        app = create_app(IdleEngine(), ServerSettings(warm_up=False))
        Server(app, host="127.0.0.1", port=port).run()
        return
    if bundle is None:
        raise InputError("a plain server needs a bundle; give --engine amlr.plan")
    engine = Engine.load(bundle, provider, precision, threads)
    uvicorn.run(plain_app(engine), port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
