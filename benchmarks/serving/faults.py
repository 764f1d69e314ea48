"""Faults while the server is under load: what happened to every request, as a table."""

import asyncio
import contextlib
import json
import random
import shutil
import signal
import struct
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.serving.client import Connection, Tally, Triples, closed_loop, request_bytes
from amlr.benchmarks.serving.processes import (
    ServerProcess,
    load_options,
    read_posts,
    running,
    triples,
)
from amlr.benchmarks.serving.servers import BREAK, HANG, KILL
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine, Post

Fault = Callable[["Scene"], Awaitable[str]]


@dataclass(slots=True)
class Scene:
    """What a fault may touch."""

    server: ServerProcess
    bundle: Path
    requests: list[bytes]
    poisoned: list[bytes]


async def _send(scene: Scene, text: str) -> str:
    connection = Connection(scene.server.port)
    status, _ = await connection.ask(request_bytes(Post(text)))
    connection.close()
    return f"its own request: {status}"


async def kill_worker(scene: Scene) -> str:
    """A worker's thread dies."""
    return await _send(scene, KILL)


async def hang_worker(scene: Scene) -> str:
    """A worker hangs for 15 s; it is given up after 5 s."""
    return await _send(scene, HANG)


async def break_engine(scene: Scene) -> str:
    """The engine raises on one post."""
    return await _send(scene, BREAK)


async def stall_client(scene: Scene) -> str:
    """Twenty clients send half a request and wait."""
    streams = [await asyncio.open_connection("127.0.0.1", scene.server.port) for _ in range(20)]
    for _, writer in streams:
        writer.write(scene.requests[0][: len(scene.requests[0]) // 2])
    ends = []
    for reader, writer in streams:
        with contextlib.suppress(OSError, TimeoutError):
            ends.append(await asyncio.wait_for(reader.read(12), 20))
        writer.close()
    return f"{sum(end.startswith(b'HTTP/1.1 408') for end in ends)} of 20 answered 408"


async def disconnect(scene: Scene) -> str:
    """A thousand clients send a request and leave at once."""
    for number in range(1000):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", scene.server.port)
            writer.write(scene.requests[number % len(scene.requests)])
            writer.close()
        if number % 20 == 0:
            await asyncio.sleep(0.01)
    return "1000 left"


async def poisoned_pictures(scene: Scene) -> str:
    """Every tenth request of the load holds a picture of random bytes, a cut file or a bomb."""
    state = random.Random(0)
    connection = Connection(scene.server.port)
    statuses: dict[str, int] = {}
    for number in range(30):
        picture = _poison(state, number)
        status, body = await connection.ask(request_bytes(Post("Paris in May", picture)))
        used = json.loads(body).get("image_used") if status == 200 else None
        key = f"{status}, picture used: {used}"
        statuses[key] = statuses.get(key, 0) + 1
        await asyncio.sleep(0.02)
    connection.close()
    return "beside them " + "; ".join(f"{count} x {key}" for key, count in statuses.items())


def _poison(state: random.Random, number: int) -> bytes:
    if number % 3 == 0:
        return state.randbytes(2000)
    if number % 3 == 1:
        return b"\xff\xd8\xff\xe0" + state.randbytes(500)
    # A sound PNG of 100,000 x 100,000 pixels, as far as it goes.
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


async def replace_bundle(scene: Scene) -> str:
    """Every file of the bundle is replaced by rubbish, as an update by rename would."""
    count = 0
    for path in scene.bundle.rglob("*"):
        if path.is_file():
            new = path.with_suffix(".new")
            new.write_bytes(b"rubbish")
            new.replace(path)
            count += 1
    return f"{count} files replaced"


async def terminate(scene: Scene) -> str:
    """SIGTERM; what was accepted must be answered, and the exit code be 0."""
    scene.server.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 40
    while scene.server.process.poll() is None and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return f"exit code {scene.server.process.returncode}"


FAULTS: tuple[Fault, ...] = (
    kill_worker,
    hang_worker,
    break_engine,
    stall_client,
    disconnect,
    poisoned_pictures,
    replace_bundle,
    terminate,
)


async def _watch_clock(pauses: list[float]) -> None:
    """How long this process itself stood still: not to be taken for the server's fault."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.05)
        pauses.append(time.perf_counter() - begun - 0.05)


async def _run(
    scene: Scene, expected: list[list[Triples]], seconds: float, clients: int, faults: list[Fault]
) -> list[Any]:
    rows = []
    for fault in faults:
        poison = fault is poisoned_pictures
        tally = Tally(expected[1] if poison else expected[0])
        pauses: list[float] = []
        clock = asyncio.create_task(_watch_clock(pauses))
        load = asyncio.create_task(
            closed_loop(
                scene.server.port,
                scene.poisoned if poison else scene.requests,
                clients=clients,
                seconds=max(seconds, 8.0 if fault is hang_worker else 0.0),
                take=tally.add,
            )
        )
        await asyncio.sleep(min(1.0, seconds / 3))
        said = await fault(scene)
        duration = await load
        clock.cancel()
        row = {
            "fault": fault.__name__,
            "said": said,
            **tally.to_dict(duration),
            "max_ms": round(1000 * max(tally.seconds, default=0.0), 2),
            "own_pause_ms": round(1000 * max(pauses, default=0.0), 2),
        }
        rows.append(row)
        click.echo(json.dumps(row))
    return rows


@click.command(cls=AmlrCommand)
@load_options(128)
@click.option("--clients", default=8, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Load around each fault.")
@click.option("--only", multiple=True, type=click.Choice([f.__name__ for f in FAULTS]))
def main(
    bundle: Path,
    posts_file: Path,
    images: Path,
    count: int,
    clients: int,
    seconds: float,
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    """Try all faults; exit 1 where an answer was wrong.

    A status of 0 is a connection that broke without an answer, 1 a port where nothing listens any
    more (after SIGTERM).
    """
    faults = [fault for fault in FAULTS if not only or fault.__name__ in only]
    posts = read_posts(posts_file, images, count)
    state = random.Random(1)
    poisoned = [
        Post(post.text, _poison(state, number // 10)) if number % 10 == 0 else post
        for number, post in enumerate(posts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        own = Path(shutil.copytree(bundle, Path(folder) / "own.plan"))
        with Engine.load(own, threads=1) as engine:
            expected = [triples(engine, posts), triples(engine, poisoned)]
            tier = ["--provider", engine.provider, "--precision", engine.precision]
        requests = [request_bytes(post) for post in posts]
        module = "amlr.benchmarks.serving.servers"
        with running(module, ["--kind", "faulty", "--engine", str(own), *tier]) as server:
            scene = Scene(server, own, requests, [request_bytes(post) for post in poisoned])
            rows = asyncio.run(_run(scene, expected, seconds, clients, faults))
            code = server.process.poll()
    if out:
        out.write_text(json.dumps(rows, indent=1))
    if code not in (0, None) or any(row["wrong_answers"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
