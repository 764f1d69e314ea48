"""LitServe with its dynamic batching around the same engine. Needs `pip install litserve`."""

from pathlib import Path
from typing import Any

import click
import litserve  # type: ignore[import-not-found, import-untyped, unused-ignore]

from amlr.benchmarks.load.peers import post_of
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post


class TagApi(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """A batch of posts a call; at the module's level because LitServe sends it to a process."""

    bundle = Path()
    threads = 1
    provider = precision = "auto"

    def setup(self, device: str) -> None:
        """Load in the worker's process."""
        self.engine = Engine.load(self.bundle, self.provider, self.precision, self.threads)

    def decode_request(self, request: dict[str, Any]) -> Post:
        """JSON to post."""
        return post_of(request)

    def batch(self, inputs: list[Post]) -> list[Post]:
        """Lists stay lists."""
        return inputs

    def predict(self, x: Any) -> list[Any]:
        """Tag a batch."""
        return self.engine.tag_batch(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Lists stay lists."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Result to JSON."""
        return dict(output.to_dict())


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--threads", default=1)
@click.option("--provider", default="auto")
@click.option("--precision", default="auto")
@click.option("--workers", default=1)
@click.option("--batch", default=16)
@click.option("--port", type=int, required=True)
def main(
    bundle: Path,
    threads: int,
    provider: str,
    precision: str,
    workers: int,
    batch: int,
    port: int,
) -> None:
    """Serve the bundle on a port until SIGTERM."""
    api = TagApi(max_batch_size=batch, batch_timeout=0.005, api_path="/v1/tag")
    api.bundle, api.threads = bundle, threads
    api.provider, api.precision = provider, precision
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
