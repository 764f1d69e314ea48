"""The real server around an engine that answers at once: what HTTP, JSON and the queue cost."""

from collections.abc import Iterable

import click

from amlr.cli_support import AmlrCommand
from amlr.runtime import Post, Result
from amlr.serving.app import create_app
from amlr.serving.server import Server
from amlr.serving.settings import ServerSettings


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
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    """Serve on the loopback interface until told to stop."""
    Server(
        create_app(IdleEngine(), ServerSettings(warm_up=False)), host="127.0.0.1", port=port
    ).run()


if __name__ == "__main__":
    main()
