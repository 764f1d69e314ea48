"""Probes are answered whatever texts are being tagged."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from amlr.runtime import Engine
from amlr.serving.settings import BatchSettings, ServerSettings
from live_server import LiveServer

LENGTH = 20_000
# Each took the first word rule seconds, in calls that let no other thread run.
UNITS = ("\u0301", "a\u0301", "1.", "\u0301a\u6771")


def test_probes_are_answered_while_eight_clients_post_the_worst_texts(tiny_plan: Path) -> None:
    settings = ServerSettings(warm_up=False, batch=BatchSettings(workers=2))
    with (
        Engine.load(tiny_plan, provider="onnxruntime", threads=1, check="off") as engine,
        LiveServer(engine, settings) as server,
        ThreadPoolExecutor(8) as clients,
        server.client() as probe,
    ):

        def post(number: int) -> int:
            text = (UNITS[number % len(UNITS)] * LENGTH)[: LENGTH - 2] + "1a"
            body = {"text": text, "deadline_ms": 60_000}
            return httpx.post(f"{server.url}/v1/tag", json=body, timeout=60).status_code

        posts = [clients.submit(post, number) for number in range(16)]
        slowest = 0.0
        while not all(answer.done() for answer in posts):
            start = time.monotonic()
            assert probe.get("/v2/health/live").status_code == 200
            slowest = max(slowest, time.monotonic() - start)
        assert [answer.result() for answer in posts] == [200] * 16
    # About 30 ms on a quiet machine; a busy one may take a second, never the seconds of many texts.
    assert slowest < 5
