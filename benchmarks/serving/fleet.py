"""A fleet under load while a replica is killed and the bundle is changed: what every request got.

python -m amlr.benchmarks.serving.fleet --engine amlr.plan --posts posts.jsonl --images photos
"""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.harness.process import memory_mib, thread_variables
from amlr.benchmarks.harness.stats import percentiles_ms
from amlr.benchmarks.report.figures import markdown_table
from amlr.benchmarks.serving.client import Connection, Triples, answer_triples, request_bytes
from amlr.benchmarks.serving.fleet_cluster import Fleet
from amlr.benchmarks.serving.processes import free_ports, load_options, read_posts, triples
from amlr.benchmarks.serving.rebias import rebias
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine
from amlr.runtime.bundle import read_manifest
from amlr.serving.client import Retries
from amlr.serving.ray.arguments import FleetArguments
from amlr.serving.ray.proxy import CALLBACK, TRIES_HEADER, VARIABLE
from amlr.serving.ray.switch import MANIFEST_HEADER

# Broken, nobody there, refused, not ready.
_AGAIN = (0, 1, 429, 503)


@dataclass(slots=True)
class Record:
    """One request with all its tries.

    Attributes:
        at: When its first try was sent, seconds since the start.
        seconds: Until its answer, pauses between tries included.
        status: Of the last try; 0 where the connection broke, 1 where nothing listened.
        bundle: Which bundle answered.
        wrong: Whether the answer is not what that bundle says.
        tries: Outcome of each try that was followed by another.
        asked_again: Whether the proxy itself sent it to a second replica.
    """

    at: float
    seconds: float = 0.0
    status: int = 0
    bundle: str = ""
    wrong: bool = False
    tries: list[int] = field(default_factory=list)
    asked_again: bool = False


class RetryingClient:
    """Many clients, each asking again as soon as it is answered."""

    def __init__(
        self, port: int, requests: Sequence[bytes], expected: dict[str, list[Triples]]
    ) -> None:
        """Ask a port of the loopback interface."""
        self._port, self._requests, self._expected = port, requests, expected
        self._retries, self._random = Retries(), random.Random(0)
        self._begun = time.perf_counter()
        self._stopped = False
        self._turn = 0
        self.records: list[Record] = []

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begun

    def stop(self) -> None:
        """Finish what is under way and ask no more."""
        self._stopped = True

    async def load(self, clients: int) -> None:
        """Run until `stop`."""
        self._begun = time.perf_counter()
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self) -> None:
        connection = Connection(self._port)
        while not self._stopped:
            index = self._turn % len(self._requests)
            self._turn += 1
            self.records.append(await self._ask(connection, index))
        connection.close()

    async def _ask(self, connection: Connection, index: int) -> Record:
        record = Record(self.now())
        attempt = 0
        while True:
            record.status, head, body = await connection.exchange(self._requests[index])
            headers = _headers(head)
            attempt += 1
            if record.status not in _AGAIN or attempt == self._retries.attempts:
                break
            record.tries.append(record.status)
            asked = headers.get("retry-after")
            await asyncio.sleep(self._retries.pause_s(attempt - 1, asked, self._random))
        record.seconds = self.now() - record.at
        if record.status == 200:
            record.bundle = headers[MANIFEST_HEADER.lower()]
            record.asked_again = TRIES_HEADER.decode() in headers
            record.wrong = answer_triples(json.loads(body)) != self._expected[record.bundle][index]
        return record

    def phases(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Figures for the time from each event to the next; requests count where they began."""
        rows = []
        for event, following in itertools.pairwise(events):
            start, end = event["at_s"], following["at_s"]
            last = following is events[-1]
            chosen = [r for r in self.records if start <= r.at and (last or r.at < end)]
            answered = [r for r in chosen if r.status == 200]
            tries = Counter(status for r in chosen for status in r.tries)
            seconds = [r.seconds for r in answered]
            rows.append(
                {
                    "from": event["event"],
                    "seconds": round(end - start, 1),
                    "requests": len(chosen),
                    "failed": len(chosen) - len(answered),
                    "failures": dict(Counter(r.status for r in chosen if r.status != 200)),
                    "wrong_answers": sum(r.wrong for r in answered),
                    "by_bundle": dict(Counter(r.bundle for r in answered)),
                    "client_retries": {str(k or "broken"): v for k, v in tries.items()},
                    "asked_again_by_proxy": sum(r.asked_again for r in answered),
                    "posts_per_s": round(len(answered) / max(end - start, 1e-9), 1),
                    **percentiles_ms(seconds),
                    "max_ms": round(1000 * max(seconds, default=0.0), 1),
                }
            )
        return rows


def _headers(head: bytes) -> dict[str, str]:
    """Headers of an answer by lower-case name."""
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return {name: value.strip() for name, _, value in pairs}


def table(phases: Sequence[dict[str, Any]]) -> str:
    """The phases as a Markdown table."""
    names = (
        "from", "seconds", "requests", "failed", "wrong_answers", "client_retries",
        "asked_again_by_proxy", "by_bundle", "posts_per_s", "p50_ms", "p95_ms", "max_ms",
    )  # fmt: skip
    return markdown_table(names, ([str(phase[name]) for name in names] for phase in phases))


@click.command(cls=AmlrCommand)
@load_options(128)
@click.option("--bias", default=1.5, show_default=True, help="Decoder bias of the second bundle.")
@click.option("--replicas", default=2, show_default=True)
@click.option("--clients", default=32, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of load around each event.")
@click.option("--ask-again/--no-ask-again", default=True, help="The proxy's second try.")
def main(out: Path | None, **options: Any) -> None:
    """Kill a replica, then change the bundle; exit 1 if a request failed or was answered wrong."""
    read_manifest(options["bundle"])
    # Replicas import this project; Ray hands the environment on to them.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ |= thread_variables(1)
    if options["ask_again"]:
        os.environ[VARIABLE] = CALLBACK
    import ray
    from ray import serve

    with tempfile.TemporaryDirectory(prefix="amlr-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=options["replicas"],
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200_000_000,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        try:
            report = _run(Path(folder), **options)
        finally:
            serve.shutdown()
            ray.shutdown()
    click.echo(table(report["phases"]))
    for event in report["events"]:
        click.echo(json.dumps(event))
    if out:
        out.write_text(json.dumps(report, indent=1))
    bad = sum(phase["failed"] + phase["wrong_answers"] for phase in report["phases"])
    sys.exit(1 if bad else 0)


def _run(
    folder: Path,
    *,
    bundle: Path,
    posts_file: Path,
    images: Path,
    count: int,
    bias: float,
    replicas: int,
    clients: int,
    seconds: float,
    ask_again: bool,
) -> dict[str, Any]:
    posts = read_posts(posts_file, images, count)
    other = rebias(bundle, folder / "other.plan", bias)
    expected = {}
    for plan in (bundle, other):
        with Engine.load(plan, threads=1) as engine:
            expected[read_manifest(plan)[1][:12]] = triples(engine, posts)
    first, second = expected.values()
    differing = sum(a != b for a, b in zip(first, second, strict=True))
    # By address: fetched into the node's cache once, by whichever replica comes first.
    arguments = FleetArguments(
        engine=bundle.absolute().as_uri(),
        replicas=replicas,
        cache_dir=folder / "cache",
        log_level="warning",
    )
    begun = time.perf_counter()
    fleet = Fleet(arguments, free_ports(1)[0])
    fleet.deploy()
    ready_s = time.perf_counter() - begun
    client = RetryingClient(fleet.port, [request_bytes(post) for post in posts], expected)
    events = asyncio.run(_events(fleet, client, other, clients, seconds))
    return {
        "posts": len(posts),
        "posts_with_other_answers": differing,
        "replicas": replicas,
        "clients": clients,
        "ask_again": ask_again,
        "ready_s": round(ready_s, 2),
        "phases": client.phases(events),
        "events": events,
    }


async def _events(
    fleet: Fleet, client: RetryingClient, other: Path, clients: int, seconds: float
) -> list[dict[str, Any]]:
    """Load from beginning to end; what is done to the fleet meanwhile."""
    load = asyncio.create_task(client.load(clients))
    events: list[dict[str, Any]] = []

    def note(event: str, **facts: Any) -> None:
        events.append({"event": event, "at_s": round(client.now(), 2), **facts})

    note("steady", replicas=await asyncio.to_thread(fleet.status))
    await asyncio.sleep(seconds)
    pids = await asyncio.to_thread(fleet.pids)
    os.kill(pids[0], signal.SIGKILL)
    note("replica killed", pid=pids[0])
    while len(now := await asyncio.to_thread(fleet.pids)) < len(pids) or pids[0] in now:
        await asyncio.sleep(0.2)
    note("replaced", pids=now)
    await asyncio.sleep(seconds)
    before = {pid: round(memory_mib(pid)) for pid in now}
    await asyncio.to_thread(fleet.change, other.absolute().as_uri())
    note("change begun", rss_mib=before)
    digest = read_manifest(other)[1]
    after: list[dict[str, Any]] = []
    while [r["manifest_sha256"] for r in after] != [digest] * len(pids):
        await asyncio.sleep(0.2)
        after = await asyncio.to_thread(fleet.status)
        if refused := [r["refused"] for r in after if r["refused"]]:
            raise RuntimeError(refused[0])
    peaks = {r["pid"]: round(memory_mib(r["pid"], peak=True)) for r in after}
    note("changed", replicas=after, peak_rss_mib=peaks)
    await asyncio.sleep(seconds)
    note("end")
    client.stop()
    await load
    return events


if __name__ == "__main__":
    main()
