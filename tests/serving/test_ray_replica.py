"""A replica without Ray around it: bundles change under requests, bad ones are refused."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amlr.errors import AmlrError, InputError
from amlr.runtime import Engine
from amlr.runtime.bundle import read_manifest
from amlr.serving.ray.replica import Door, Tagger
from amlr.serving.ray.switch import MANIFEST_HEADER
from amlr.serving.service import State
from rebias import rebias

TEXT = "Kevin Love at Quicken Loans Arena in Paris"
Found = list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def other_plan(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with another bias."""
    return rebias(tiny_plan, tmp_path_factory.mktemp("other") / "other.plan", 1.2)


def digest_of(plan: Path) -> str:
    return read_manifest(plan)[1]


def expected(plan: Path) -> Found:
    with Engine.load(plan, provider="onnxruntime", threads=1) as engine:
        return [(e.start, e.end, e.label) for e in engine.tag(TEXT).entities]


@asynccontextmanager
async def replica(plan: Path, cache: Path, **more: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A replica that serves `plan`, in the order of calls that Ray Serve has, and a client."""
    values = {"engine": str(plan), "pin": False, "provider": "onnxruntime", "log_level": "warning"}
    tagger = Tagger({**values, "cache_dir": str(cache), **more})
    transport = httpx.ASGITransport(app=Door())
    async with httpx.AsyncClient(transport=transport, base_url="http://amlr") as client:
        await tagger.reconfigure({"engine": str(plan)})
        await tagger.check_health()
        try:
            yield tagger, client
        finally:
            await tagger.switch.close()


async def settled(tagger: Any) -> None:
    """Wait until every change asked for so far is done or refused."""
    while (await tagger.status())["changing"]:
        await asyncio.sleep(0.005)


def found(response: httpx.Response) -> Found:
    assert response.status_code == 200, response.text
    return [(e["start"], e["end"], e["label"]) for e in response.json()["entities"]]


def test_every_answer_is_of_the_bundle_it_names(
    tiny_plan: Path, other_plan: Path, tmp_path: Path
) -> None:
    by_digest = {digest_of(plan)[:12]: expected(plan) for plan in (tiny_plan, other_plan)}
    assert len({str(value) for value in by_digest.values()}) == 2

    async def run() -> list[str]:
        async with replica(tiny_plan, tmp_path) as (tagger, client):
            seen: list[str] = []
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    response = await client.post("/v1/tag", json={"text": TEXT})
                    digest = response.headers[MANIFEST_HEADER]
                    assert found(response) == by_digest[digest]
                    seen.append(digest)

            clients = [asyncio.create_task(ask()) for _ in range(4)]
            await asyncio.sleep(0.05)
            await tagger.reconfigure({"engine": str(other_plan)})
            asked = len(seen)
            await settled(tagger)
            changed = len(seen)
            assert changed > asked  # it went on answering while it loaded
            await asyncio.sleep(0.05)
            stop.set()
            await asyncio.gather(*clients)
            model = (await client.get("/v2/models/tiny")).json()
            assert model["parameters"] == {"manifest_sha256": digest_of(other_plan)}
            assert set(seen[changed:]) == {digest_of(other_plan)[:12]}
            return seen

    seen = asyncio.run(run())
    assert set(seen) == set(by_digest)


def test_a_bad_bundle_is_refused_and_the_old_one_stays(
    tiny_plan: Path, other_plan: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(other_plan, tmp_path / "damaged.plan"))
    (damaged / "tokenizer.json").write_bytes(b"rubbish")
    lying = Path(shutil.copytree(other_plan, tmp_path / "lying.plan"))
    manifest = json.loads((lying / "manifest.json").read_text())
    manifest["decoder"]["bias"] = -5.0  # its golden entities are of another bias
    (lying / "manifest.json").write_text(json.dumps(manifest))

    async def run() -> None:
        async with replica(tiny_plan, tmp_path / "cache") as (tagger, client):
            for config, said in (
                ({"engine": str(damaged)}, "tokenizer.json"),
                ({"engine": str(lying)}, "golden post"),
                ({"engine": str(other_plan), "manifest_sha256": "0" * 64}, "pinned"),
                ({"engine": str(other_plan), "bias": 1}, "bias"),
                ({"engine": (tmp_path / "none").as_uri()}, "check the address"),
            ):
                await tagger.reconfigure(config)
                await settled(tagger)
                status = await tagger.status()
                assert said in status["refused"]
                assert status["manifest_sha256"] == digest_of(tiny_plan)
                assert found(await client.post("/v1/tag", json={"text": TEXT}))
                await tagger.check_health()
            await tagger.reconfigure({"engine": str(other_plan)})
            await settled(tagger)
            status = await tagger.status()
            assert status["refused"] is None
            assert status["manifest_sha256"] == digest_of(other_plan)

    asyncio.run(run())


def test_the_last_of_several_changes_counts(
    tiny_plan: Path, other_plan: Path, tmp_path: Path
) -> None:
    async def run() -> tuple[int, str]:
        async with replica(tiny_plan, tmp_path / "cache") as (tagger, _):
            loads: list[str] = []
            load = tagger._load

            def counted(choice: Any) -> Engine:
                loads.append(choice.engine)
                loaded: Engine = load(choice)
                return loaded

            tagger._load = counted
            await tagger.reconfigure({"engine": str(tiny_plan)})  # as it is: nothing to do
            await settled(tagger)
            assert loads == []
            await tagger.reconfigure({"engine": str(tmp_path / "typo")})
            await tagger.reconfigure({"engine": str(other_plan)})
            await settled(tagger)
            status = await tagger.status()
            assert status["refused"] is None
            return len(loads), status["manifest_sha256"]

    assert asyncio.run(run()) == (1, digest_of(other_plan))


def test_a_first_bundle_that_fails_stops_the_replica(tmp_path: Path) -> None:
    async def run() -> None:
        async with replica(tmp_path / "none.plan", tmp_path / "cache"):
            pass

    with pytest.raises(AmlrError, match="no bundle"):
        asyncio.run(run())
    with pytest.raises(InputError, match="engine"):
        asyncio.run(Tagger({"engine": "x", "pin": False}).reconfigure({"bundle": "x"}))


def test_before_the_first_bundle_it_says_come_back(tmp_path: Path) -> None:
    async def run() -> httpx.Response:
        Tagger({"engine": "x", "pin": False, "cache_dir": str(tmp_path)})
        transport = httpx.ASGITransport(app=Door())
        async with httpx.AsyncClient(transport=transport, base_url="http://amlr") as client:
            return await client.get("/v2/health/ready")

    response = asyncio.run(run())
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def test_a_failing_engine_asks_for_another_replica(tiny_plan: Path, tmp_path: Path) -> None:
    async def run() -> None:
        async with replica(tiny_plan, tmp_path) as (tagger, _):
            tagger.switch.service._enter(State.FAILING, "told to")
            with pytest.raises(AmlrError, match="told to"):
                await tagger.check_health()

    asyncio.run(run())


def test_keys_come_from_the_environment(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMLR_API_KEYS", "one, two")

    async def run() -> list[int]:
        async with replica(tiny_plan, tmp_path) as (_, client):
            keys = [{}, {"X-API-Key": "two"}]
            asked = [await client.post("/v1/tag", json={"text": "a"}, headers=key) for key in keys]
            return [response.status_code for response in asked]

    assert asyncio.run(run()) == [401, 200]


@pytest.mark.skipif(sys.platform != "linux", reason="pins on Linux only")
def test_replicas_share_no_core(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from amlr.serving.ray.replica import claim_cores\n"
        "cores = claim_cores(Path(sys.argv[1]), 1)\n"
        "print(list(cores), sorted(os.sched_getaffinity(0)), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    cores = sorted(os.sched_getaffinity(0))
    pipe = subprocess.PIPE
    # One more than there are cores: the last stays unpinned instead of sharing one.
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(len(cores) + 1)
    ]
    said = []
    for process in started:
        assert process.stdout is not None
        said.append(process.stdout.readline().strip())
    started[0].kill()  # a killed holder gives its core back
    for process in started:
        process.communicate("")
    assert sorted(said) == sorted([f"[{c}] [{c}]" for c in cores] + [f"[] {cores}"])
    again = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert again.stdout.startswith(f"[{cores[0]}]")
