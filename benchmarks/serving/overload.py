"""Far more requests than the server can answer: memory, latency, and every answer checked."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.serving.client import Tally, closed_loop, open_loop, request_bytes
from amlr.benchmarks.serving.processes import ServerProcess, read_posts, running, triples
from amlr.runtime import Engine

_PATH = click.Path(path_type=Path)
# Memory is compared with what it was after this share of the run: caches fill first.
_SETTLED = 0.2


async def _watch_memory(server: ServerProcess, samples: list[tuple[float, float]]) -> None:
    begun = time.monotonic()
    while True:
        samples.append((time.monotonic() - begun, server.rss_mb))
        await asyncio.sleep(1.0)


async def _overload(
    server: ServerProcess, requests: list[bytes], rate: float, seconds: float, tally: Tally
) -> tuple[float, int, list[tuple[float, float]]]:
    samples: list[tuple[float, float]] = []
    watcher = asyncio.create_task(_watch_memory(server, samples))
    duration, sent = await open_loop(
        server.port, requests, rate=rate, seconds=seconds, take=tally.add
    )
    watcher.cancel()
    return duration, sent, samples


@click.command()
@click.option("--engine", "bundle", type=_PATH, required=True)
@click.option("--posts", "posts_file", type=_PATH, required=True, help="JSON lines {text, image}.")
@click.option("--images", type=_PATH, required=True)
@click.option("--count", default=512, show_default=True, help="Different posts.")
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--times", default=2.0, show_default=True, help="Rate over the sustainable one.")
@click.option("--deadline-ms", default=1000, show_default=True)
@click.option("--json", "out", type=_PATH)
def main(
    bundle: Path,
    posts_file: Path,
    images: Path,
    count: int,
    seconds: float,
    times: float,
    deadline_ms: int,
    out: Path | None,
) -> None:
    """Find the sustainable rate, then send a multiple of it; exit 1 where a promise is broken."""
    posts = read_posts(posts_file, images, count)
    with Engine.load(bundle, threads=1) as engine:
        expected = triples(engine, posts)
    plain = [request_bytes(post) for post in posts]
    requests = [request_bytes(post, deadline_ms=deadline_ms) for post in posts]
    with running("amlr.serving", ["--engine", str(bundle)]) as server:
        calm = Tally(expected)
        took = asyncio.run(
            closed_loop(
                server.port, plain, clients=32, seconds=min(20.0, seconds / 2), take=calm.add
            )
        )
        rate = calm.statuses.get(200, 0) / took
        tally = Tally(expected)
        duration, sent, samples = asyncio.run(
            _overload(server, requests, times * rate, seconds, tally)
        )
        alive = server.process.poll() is None
    settled = [mb for at, mb in samples if at >= _SETTLED * duration]
    report: dict[str, Any] = tally.to_dict(duration) | {
        "sustainable_per_s": round(rate, 2),
        "offered_per_s": round(sent / seconds, 2),
        "deadline_ms": deadline_ms,
        "rss_mb_settled": settled[0] if settled else None,
        "rss_mb_max": max(settled, default=None),
        "rss_growth": round(max(settled) / settled[0] - 1, 3) if settled else None,
    }
    p99 = report["p99_ms"]
    promises = {
        "every request answered with 200 or 429": set(tally.statuses) <= {200, 429}
        and sum(tally.statuses.values()) == sent,
        "no wrong answer": tally.wrong == 0,
        "p99 of accepted within the deadline": p99 is not None and p99 <= deadline_ms,
        "memory flat within 10 %": bool(settled) and max(settled) <= 1.1 * settled[0],
        "server alive": alive,
    }
    report["promises"] = promises
    click.echo(json.dumps(report, indent=1))
    if out:
        out.write_text(json.dumps({**report, "memory": samples}))
    if not all(promises.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
