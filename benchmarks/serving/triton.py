"""Triton beside the engine called directly: the same entities, batches seen, posts a second.

Triton's own clients check the answers, one after the other protocol; speed is measured twice, with
them in threads and with a lean HTTP client, because on a small machine the client shares the
server's cores.
"""

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.data import in_memory, load_data
from amlr.benchmarks.serving.client import Reply, Triples, answer_triples, closed_loop, http_post
from amlr.benchmarks.serving.processes import triples
from amlr.benchmarks.serving.throughput import direct
from amlr.benchmarks.serving.triton_client import PROTOCOLS, TaggingClient
from amlr.benchmarks.serving.triton_server import TritonServer, find_installation
from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import read_manifest
from amlr.runtime.cpu import usable_cores
from amlr.serving.triton.repository import MODELS, write_repository

_PATH = click.Path(path_type=Path)
_COUNT, _RUNS = "nv_inference_count", "nv_inference_exec_count"


class Batches:
    """Requests and runs that Triton counts from here on."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return self._server.metric(_COUNT), self._server.metric(_RUNS)

    def to_dict(self) -> dict[str, float]:
        """Posts, runs of the model, and posts a run."""
        posts, runs = (b - a for a, b in zip(self._before, self._now(), strict=True))
        return {"posts": posts, "runs": runs, "posts_per_run": round(posts / max(1.0, runs), 2)}


def asked(
    server: TritonServer, protocol: str, posts: Sequence[Post], clients: int, seconds: float
) -> tuple[list[tuple[int, Triples]], float]:
    """Ask for posts in turn from threads, every post at least once and for at least `seconds`.

    Returns:
        Index and entities of each answer, and the time that all took.
    """
    found: list[tuple[int, Triples]] = []
    failures: list[BaseException] = []
    turn, lock = iter(range(10**9)), threading.Lock()
    begun = time.perf_counter()

    def work() -> None:
        client = TaggingClient(protocol, getattr(server, protocol))
        try:
            while not failures:
                with lock:
                    number = next(turn)
                if number >= len(posts) and time.perf_counter() - begun >= seconds:
                    break
                index = number % len(posts)
                (answer,) = client.tag([posts[index].text], [_image(posts[index])])
                found.append((index, answer_triples(answer)))
        except BaseException as error:
            failures.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found, time.perf_counter() - begun


def lean(
    server: TritonServer,
    posts: Sequence[Post],
    expected: Sequence[Triples],
    clients: int,
    seconds: float,
    *,
    leave_out: bool,
) -> dict[str, Any]:
    """Throughput over HTTP with the lean client; answers are checked as they come."""
    requests = [_http_request(post, leave_out=leave_out) for post in posts]
    wrong = good = 0

    def take(reply: Reply) -> None:
        nonlocal wrong, good
        if reply.status != 200:
            wrong += 1
            return
        (output,) = json.loads(reply.body)["outputs"]
        good += 1
        wrong += answer_triples(json.loads(output["data"][0])) != expected[reply.index]

    port = int(server.http.rpartition(":")[2])
    batches = Batches(server)
    duration = asyncio.run(closed_loop(port, requests, clients=clients, seconds=seconds, take=take))
    return {"posts_per_s": round(good / duration, 2), "wrong": wrong, **batches.to_dict()}


def _http_request(post: Post, *, leave_out: bool) -> bytes:
    """A whole HTTP request, made by Triton's client, that asks for JSON back."""
    import tritonclient.http as http

    client = TaggingClient("http", "localhost:1")
    inputs = [client.tensor("text", [post.text.encode()])]
    if post.image is not None or not leave_out:
        inputs.append(client.tensor("image", [_image(post)]))
    output = http.InferRequestedOutput("result", binary_data=False)
    body, header = client.client.generate_request_body(inputs, outputs=[output])
    kind = f"application/octet-stream\r\nInference-Header-Content-Length: {header}"
    return http_post("/v2/models/amlr/infer", kind, bytes(body))


def _image(post: Post) -> bytes:
    return post.image if isinstance(post.image, bytes) else b""


def _read_posts(data: str, images: Path | None, photos: Path | None, count: int) -> list[Post]:
    """Posts as a client of Triton has them: no words, pictures as bytes.

    Three of four posts whose own picture is not at hand get one of `photos`, in turn.
    """
    files = sorted(path for path in photos.iterdir() if path.is_file()) if photos else []
    posts = []
    for number, item in enumerate(load_data(data, images, count, count).posts):
        post = in_memory(item.post)
        picture = post.image if isinstance(post.image, bytes) else None
        if picture is None and files and number % 4:
            picture = files[number % len(files)].read_bytes()
        posts.append(Post(post.text, picture))
    if len(posts) < count:
        raise InputError(f"{data} holds {len(posts)} posts, --count asks for {count}")
    return posts


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=_PATH, required=True)
@click.option("--triton", "venv", type=_PATH, required=True, help="Environment of the server.")
@click.option("--data", default="sample", show_default=True, help="CoNLL or JSON lines.")
@click.option("--images", type=_PATH, help="Folder of the posts' own pictures.")
@click.option("--photos", type=_PATH, help="Pictures for posts without one.")
@click.option("--count", default=500, show_default=True, help="Different posts.")
@click.option("--clients", default=32, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="For each measurement.")
@click.option("--instances", type=int, help="Model instances; default: cores.")
@click.option("--provider", default="onnxruntime", show_default=True, help="Of both.")
@click.option("--json", "out", type=_PATH)
def main(
    bundle: Path,
    venv: Path,
    data: str,
    images: Path | None,
    photos: Path | None,
    count: int,
    clients: int,
    seconds: float,
    instances: int | None,
    provider: str,
    out: Path | None,
) -> None:
    """Measure all, print a line each; ends with status 1 if an answer differs."""
    read_manifest(bundle)
    cores = usable_cores()
    instances = instances or cores
    threads = max(1, cores // instances)
    posts = _read_posts(data, images, photos, count)
    pictures = sum(post.image is not None for post in posts)
    rows: dict[str, dict[str, Any]] = {}

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        click.echo(f"{name:22} {json.dumps(row)}")

    installation = find_installation(venv)
    with Engine.load(bundle, provider, threads=threads) as engine:
        expected = triples(engine, posts)  # also fills the picture cache
        direct(engine, posts, instances, 2.0)
        keep("engine, direct", direct(engine, posts, instances, seconds))
    with tempfile.TemporaryDirectory() as folder:
        repository = write_repository(
            bundle,
            Path(folder) / "triton",
            provider=provider,
            threads=threads,
            instances=instances,
        )
        begun = time.perf_counter()
        with TritonServer(installation, repository / MODELS) as server:
            keep("ready", {"seconds": round(time.perf_counter() - begun, 2)})
            for protocol in PROTOCOLS:
                # The first round fills the picture cache of every instance.
                for name, least in ((f"{protocol}, first", 0.0), (f"{protocol}, client", seconds)):
                    batches = Batches(server)
                    found, duration = asked(server, protocol, posts, clients, least)
                    wrong = sum(entities != expected[index] for index, entities in found)
                    row = {"posts_per_s": round(len(found) / duration, 2), "wrong": wrong}
                    keep(name, row | {"asked": len({i for i, _ in found})} | batches.to_dict())
            for name, leave_out in (("http, lean", False), ("http, image left out", True)):
                row = lean(server, posts, expected, clients, seconds, leave_out=leave_out)
                keep(name, row)
    reference = rows["engine, direct"]["posts_per_s"]
    for row in rows.values():
        if "posts_per_s" in row:
            row["of_direct"] = round(row["posts_per_s"] / reference, 3)
    summary = {
        "posts": len(posts),
        "with_picture": pictures,
        "entities": sum(map(len, expected)),
        "cores": cores,
        "instances": instances,
        "threads": threads,
        "clients": clients,
        "of_direct": {name: row["of_direct"] for name, row in rows.items() if "of_direct" in row},
    }
    click.echo(json.dumps(summary))
    if out:
        out.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    if any(row.get("wrong") for row in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
