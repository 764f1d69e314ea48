"""Other servers around the same engine, as one would write them without this one."""

import base64
import importlib
from pathlib import Path
from typing import Any

import click

from amlr.runtime import Engine, Post


def _post(value: dict[str, Any]) -> Post:
    image = value.get("image")
    return Post(value["text"], base64.b64decode(image) if image else None)


def serve_plain(engine: Engine, port: int) -> None:
    """FastAPI, one engine call a request, in FastAPI's own thread pool."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/v1/tag")
    def tag(value: dict[str, Any]) -> dict[str, Any]:
        return engine.tag_batch([_post(value)])[0].to_dict()

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_litserve(bundle: Path, port: int, threads: int, batch: int) -> None:
    """LitServe with its dynamic batching."""
    # Not a dependency of this project: pip install litserve.
    litserve: Any = importlib.import_module("litserve")

    class TagApi(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
        def setup(self, device: str) -> None:
            self.engine = Engine.load(bundle, threads=threads)

        def decode_request(self, request: dict[str, Any]) -> Post:
            return _post(request)

        def batch(self, inputs: list[Post]) -> list[Post]:
            return inputs

        def predict(self, x: Any) -> list[Any]:
            return self.engine.tag_batch(x)

        def unbatch(self, output: list[Any]) -> list[Any]:
            return output

        def encode_response(self, output: Any) -> dict[str, Any]:
            return dict(output.to_dict())

    api = TagApi(max_batch_size=batch, batch_timeout=0.005, api_path="/v1/tag")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=port, generate_client_file=False, log_level="warning"
    )


@click.command()
@click.argument("kind", type=click.Choice(["plain", "litserve"]))
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--threads", default=2)
@click.option("--batch", default=16)
@click.option("--port", type=int, required=True)
def main(kind: str, bundle: Path, threads: int, batch: int, port: int) -> None:
    """Serve the bundle on a port until SIGTERM."""
    if kind == "plain":
        serve_plain(Engine.load(bundle, threads=threads), port)
    else:
        serve_litserve(bundle, port, threads, batch)


if __name__ == "__main__":
    main()
