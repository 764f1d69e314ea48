"""Far more requests than the server can answer: memory, latency, and every answer checked."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.serving.client import Tally, closed_loop, open_loop, request_bytes
from amlr.benchmarks.serving.processes import (
    ServerProcess,
    load_options,
    read_posts,
    running,
    triples,
)
from amlr.benchmarks.serving.throughput import cores_used
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine

# Memory is compared with what it was after this share of the run: caches fill first.
_SETTLED = 0.2


async def _watch_memory(server: ServerProcess, samples: list[tuple[float, float]]) -> None:
    begun = time.monotonic()
    while True:
        samples.append((time.monotonic() - begun, server.memory_mib))
        await asyncio.sleep(1.0)


async def _overload(
    server: ServerProcess, requests: list[bytes], rate: float, seconds: float, tally: Tally
) -> tuple[float, int, list[tuple[float, float]]]:
    samples: list[tuple[float, float]] = []
    watcher = asyncio.create_task(_watch_memory(server, samples))
    at_s = [number / rate for number in range(int(rate * seconds))]
    duration = await open_loop([server.port], requests, at_s=at_s, take=tally.add)
    watcher.cancel()
    return duration, len(at_s), samples


@click.command(cls=AmlrCommand)
@load_options(512)
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--times", default=2.0, show_default=True, help="Rate over the sustainable one.")
@click.option("--deadline-ms", default=1000, show_default=True)
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
    """Find the sustainable rate, then send a multiple of it; exit 1 where a promise is broken.

    The load generator shares the server's cores, both while the rate is found and afterwards.
    """
    posts = read_posts(posts_file, images, count)
    with Engine.load(bundle, threads=1) as engine:
        expected = triples(engine, posts)
        tier = ["--provider", engine.provider, "--precision", engine.precision]
    plain = [request_bytes(post) for post in posts]
    requests = [request_bytes(post, deadline_ms=deadline_ms) for post in posts]
    with running("amlr.serving", ["--engine", str(bundle), *tier]) as server:
        warm, calm = Tally(expected), Tally(expected)
        calm_s = min(20.0, seconds / 2)
        for counted, span in ((warm, calm_s / 2), (calm, calm_s)):
            # First without counting: until all pictures are known, the rate is too low.
            took = asyncio.run(
                closed_loop(server.port, plain, clients=32, seconds=span, take=counted.add)
            )
        rate = calm.statuses.get(200, 0) / took
        tally, load = Tally(expected), dict[str, Any]()
        with cores_used(load, lambda: server.cpu_s):
            duration, sent, samples = asyncio.run(
                _overload(server, requests, times * rate, seconds, tally)
            )
            load["answered"] = len(tally.seconds)
        alive = server.process.poll() is None
    settled = [mib for at, mib in samples if at >= _SETTLED * duration]
    growth = max(settled) / settled[0] - 1 if settled else None
    report: dict[str, Any] = tally.to_dict(duration) | load
    report |= {
        "sustainable_per_s": round(rate, 2),
        "offered_per_s": round(sent / seconds, 2),
        "seconds": round(duration, 1),
        "deadline_ms": deadline_ms,
        "rss_mib_settled": settled[0] if settled else None,
        "rss_mib_max": max(settled, default=None),
        "rss_growth": None if growth is None else round(growth, 3),
    }
    answered = sum(tally.statuses.get(status, 0) for status in (200, 429))
    p99 = report["p99_ms"]
    verdicts = [
        ("every request answered with 200 or 429", answered == sent, f"{answered} of {sent}"),
        ("no wrong answer", tally.wrong == 0, f"{tally.wrong} of {len(tally.seconds)}"),
        (
            "p99 of accepted within the deadline",
            p99 is not None and p99 <= deadline_ms,
            f"{p99} of {deadline_ms} ms",
        ),
        (
            "memory flat within 10 %",
            growth is not None and growth <= 0.1,
            "not measured" if growth is None else f"{100 * growth:+.1f} % after a fifth of the run",
        ),
        ("server alive", alive, f"{samples[-1][1]:.0f} MiB"),
    ]
    report["promises"] = {promise: kept for promise, kept, _ in verdicts}
    click.echo(json.dumps(report, indent=1))
    for promise, kept, figure in verdicts:
        click.echo(f"{'PASS' if kept else 'FAIL'}  {promise:40} {figure}")
    if out:
        out.write_text(json.dumps({**report, "memory": samples}))
    if not all(kept for _, kept, _ in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
