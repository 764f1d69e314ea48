"""Servers for load tests: `python -m amlr.benchmarks.serving.servers --kind K --port N`.

`plain` is a FastAPI server as one would write it without this project, `idle` the real server
around an engine that answers at once (what HTTP, JSON and the queue cost), `faulty` the real server
with a switch: a post that says so kills its worker, hangs it, or breaks the engine.
"""

import base64
import time
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
from amlr.serving.logs import configure
from amlr.serving.server import Server
from amlr.serving.settings import BatchSettings, ServerSettings

KILL, HANG, BREAK = "fault: kill worker", "fault: hang worker", "fault: break engine"
_HOST = "127.0.0.1"


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


class FaultyEngine(Engine):
    """An engine that obeys the texts `KILL`, `HANG` and `BREAK`."""

    def tag_batch(self, posts: Any) -> list[Result]:
        """Fail as told, else tag."""
        texts = [post.text for post in posts]
        if KILL in texts:
            raise SystemExit("told to die")
        if HANG in texts:
            time.sleep(15)
        if BREAK in texts:
            raise RuntimeError("told to break")
        return super().tag_batch(posts)


@click.command(cls=AmlrCommand)
@click.option("--kind", type=click.Choice(["plain", "idle", "faulty"]), default="plain")
@click.option("--engine", "bundle", type=click.Path(path_type=Path), help="All but idle need it.")
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
        Server(app, host=_HOST, port=port).run()
        return
    if bundle is None:
        raise InputError(f"a {kind} server needs a bundle; give --engine amlr.plan")
    if kind == "plain":
        engine = Engine.load(bundle, provider, precision, threads)
        uvicorn.run(plain_app(engine), port=port, log_level="warning", access_log=False)
        return
    configure("warning")
    with FaultyEngine.load(bundle, provider, precision, threads=threads) as engine:
        settings = ServerSettings(batch=BatchSettings(workers=2, stuck_s=5.0))
        Server(create_app(engine, settings), host=_HOST, port=port).run()


if __name__ == "__main__":
    main()
