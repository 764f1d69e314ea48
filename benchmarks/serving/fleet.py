"""A fleet under load while a replica is killed and the bundle is changed: what every request got.

python -m amlr.benchmarks.serving.fleet --engine amlr.plan --posts posts.jsonl --images photos
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.harness.process import memory_mib, thread_variables
from amlr.benchmarks.serving.client import request_bytes
from amlr.benchmarks.serving.fleet_client import RetryingClient, table
from amlr.benchmarks.serving.fleet_cluster import Fleet
from amlr.benchmarks.serving.processes import free_port, load_options, read_posts, triples
from amlr.benchmarks.serving.rebias import rebias
from amlr.cli_support import AmlrCommand
from amlr.runtime import Engine
from amlr.runtime.bundle import read_manifest
from amlr.serving.ray.arguments import FleetArguments
from amlr.serving.ray.proxy import CALLBACK, VARIABLE


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
    fleet = Fleet(arguments, free_port())
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
