"""The server with a switch: a post that says so kills its worker, hangs it, or breaks the engine.

Only for `amlr.benchmarks.serving.faults`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post, Result
from amlr.serving.app import create_app
from amlr.serving.logs import configure
from amlr.serving.server import Server
from amlr.serving.settings import BatchSettings, ServerSettings

KILL, HANG, BREAK = "fault: kill worker", "fault: hang worker", "fault: break engine"


class FaultyEngine(Engine):
    """An engine that obeys the texts above."""

    def tag_batch(self, posts: Any) -> list[Result]:
        """Fail as told, else tag."""
        self._fail([post.text for post in posts])
        return super().tag_batch(posts)

    def _fail(self, texts: Sequence[str]) -> None:
        if KILL in texts:
            raise SystemExit("told to die")
        if HANG in texts:
            time.sleep(15)
        if BREAK in texts:
            raise RuntimeError("told to break")


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--port", type=int, required=True)
@click.option("--workers", default=2)
@click.option("--provider", default="auto")
@click.option("--precision", default="auto")
def main(bundle: Path, port: int, workers: int, provider: str, precision: str) -> None:
    """Serve until SIGTERM."""
    configure("warning")
    with FaultyEngine.load(bundle, provider, precision, threads=1) as engine:
        batch = BatchSettings(workers=workers, stuck_s=5.0)
        server = Server(
            create_app(engine, ServerSettings(batch=batch)), host="127.0.0.1", port=port
        )
        server.run()


__all__ = ["BREAK", "HANG", "KILL", "Post"]

if __name__ == "__main__":
    main()
