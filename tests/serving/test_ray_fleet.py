"""A real Ray Serve on the loopback interface: one replica, a change of bundle, a killed replica."""

import json
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amlr.benchmarks.load.server import free_ports
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import read_manifest
from amlr.serving.client import Client, Retries
from amlr.serving.ray.arguments import FleetArguments
from amlr.serving.ray.proxy import CALLBACK, VARIABLE
from amlr.serving.ray.switch import MANIFEST_HEADER
from ray_library import require_ray
from rebias import rebias

# Ray leaves sockets to the garbage collector, and its threads complain when it is shut down.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TEXT = "Kevin Love at Quicken Loans Arena in Paris"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`ray.serve` with a proxy; everything ends with the test."""
    require_ray()
    import ray
    from ray import serve

    monkeypatch.setenv(VARIABLE, CALLBACK)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="amlr-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100_000_000,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield serve
        finally:
            serve.shutdown()
            ray.shutdown()


def wait(test: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_fleet_of_one(serve: Any, tiny_plan: Path, tmp_path: Path) -> None:
    from ray_fleet import Fleet

    other = rebias(tiny_plan, tmp_path / "other.plan", 1.2)
    answers = {}
    for plan in (tiny_plan, other):
        with Engine.load(plan, provider="onnxruntime", threads=1) as engine:
            answers[read_manifest(plan)[1][:12]] = engine.tag(TEXT).to_dict()["entities"]
    first, second = answers
    fleet = Fleet(
        FleetArguments(
            engine=tiny_plan.as_uri(),
            provider="onnxruntime",
            cache_dir=tmp_path / "cache",
            log_level="warning",
        ),
        free_ports(1)[0],
    )
    fleet.deploy()
    url = f"http://127.0.0.1:{fleet.port}"
    (before,) = fleet.status()
    assert before["manifest_sha256"][:12] == first
    assert Path(tmp_path / "cache" / before["manifest_sha256"]).is_dir()

    with Client(url, retries=Retries(attempts=8)) as client:
        assert client.ready()
        assert [e.to_dict() for e in client.tag(TEXT).entities] == answers[first]
        binary = client._http.post(
            "/v2/models/tiny/infer",
            json={"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]},
        )
        (data,) = binary.json()["outputs"][0]["data"]
        assert json.loads(data)["entities"] == answers[first]

        seen: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                response = client._post(json.dumps({"text": TEXT}).encode())
                digest = response.headers[MANIFEST_HEADER]
                assert response.json()["entities"] == answers[digest]
                seen.append(digest)

        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                ask()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded) for _ in range(2)]
        for thread in threads:
            thread.start()
        fleet.change(str(other))
        wait(lambda: [s["manifest_sha256"][:12] for s in fleet.status()] == [second])
        wait(lambda: failures or (seen and seen[-1] == second))
        assert failures == []
        (after,) = fleet.status()
        assert after["pid"] == before["pid"]  # the same process: nothing was restarted
        os.kill(after["pid"], signal.SIGKILL)
        wait(lambda: fleet.pids() and fleet.pids() != [after["pid"]])
        count = len(seen)
        wait(lambda: len(seen) > count + 5)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(seen) == {first, second}
        assert seen[-1] == second  # the replacement serves the bundle in force, not the first one
        assert client.tag_batch([Post(TEXT)])[0].to_dict()["entities"] == answers[second]
