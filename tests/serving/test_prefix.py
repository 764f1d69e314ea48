"""The same answers under a path prefix, whoever puts it there."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from amlr.serving.app import create_app
from amlr.serving.guard import route_path, strip_repeated_prefix
from amlr.serving.settings import ServerSettings
from fake_engine import FakeEngine
from live_server import LiveServer

SETTINGS = ServerSettings(warm_up=False, api_keys=("k",))
LINKS = re.compile(r'(?:href|src)="([^"]*)"')


@pytest.mark.parametrize("kept", ["", "/ner"])
def test_a_proxy_may_remove_the_prefix_or_keep_it(kept: str) -> None:
    with LiveServer(FakeEngine(), SETTINGS, root_path="/ner") as server, server.client() as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/static/app.js"):
            assert client.get(kept + path).status_code == 200, path
        assert client.get(f"{kept}/metrics").status_code == 401
        refused = client.get(f"{kept}/v2/models/none")
        assert (refused.status_code, type(refused.json()["error"])) == (401, str)
        client.headers["X-API-Key"] = "k"
        assert isinstance(client.get(f"{kept}/v2/models/none").json()["error"], str)
        assert client.get(f"{kept}/v1/none").json()["error"]["code"] == "not_found"
        assert client.post(f"{kept}/v1/tag", json={"text": "Rome"}).json()["entities"]
        lines = client.post(
            f"{kept}/v1/tag/stream",
            content=b'{"text": "Rome"}\n' * 3,
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert len(lines.text.splitlines()) == 3
        assert client.get(f"{kept}/openapi.json").json()["servers"] == [{"url": "/ner"}]


@pytest.mark.parametrize("page", ["", "docs"])
def test_every_link_of_the_page_stays_below_the_prefix(page: str) -> None:
    outer = Starlette()
    outer.mount("/a/b", create_app(FakeEngine(), ServerSettings(warm_up=False)))

    async def follow() -> None:
        transport = httpx.ASGITransport(app=outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://server/a/b/") as client:
            html = (await client.get(page)).text
            links = [link for link in LINKS.findall(html) if not link.startswith("#")]
            assert len(links) >= 5
            here = client.base_url.join(page)
            for link in links:
                answer = await client.get(here.join(link))
                assert answer.status_code == 200, link
                for module in re.findall(r'from "([^"]*)"', answer.text):
                    assert (await client.get(answer.url.join(module))).status_code == 200
                for fetched in re.findall(r'fetch\("([^"]*)"', answer.text):
                    assert (await client.get(here.join(fetched))).status_code in (200, 405)

    asyncio.run(follow())


@pytest.mark.parametrize("enter", [True, False])
def test_a_mounted_application_says_whether_its_lifespan_ran(enter: bool) -> None:
    inner = create_app(FakeEngine(), ServerSettings(warm_up=False))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if not enter:
            yield
            return
        async with inner.router.lifespan_context(inner):
            yield

    outer = Starlette(lifespan=lifespan)
    outer.mount("/ner", inner)

    async def ask() -> None:
        transport = httpx.ASGITransport(app=outer)
        async with (
            outer.router.lifespan_context(outer),
            httpx.AsyncClient(transport=transport, base_url="http://server/ner") as client,
        ):
            ready = await client.get("/v2/health/ready")
            answer = await client.post("/v1/tag", json={"text": "Rome"})
            assert (await client.get("/v2/health/live")).status_code == 200
        if enter:
            assert (ready.status_code, answer.status_code) == (200, 200)
        else:
            assert (ready.status_code, ready.json()["state"]) == (503, "not_started")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_started")
            assert "lifespan" in answer.json()["error"]["message"]

    asyncio.run(ask())


PIECES = st.text("/ab", max_size=5)


@given(prefix=PIECES, path=PIECES)
def test_the_prefix_is_taken_off_once(prefix: str, path: str) -> None:
    prefix = prefix.rstrip("/")
    rest = "/" + path
    assert route_path({"path": prefix + rest, "root_path": prefix}) == rest
    assert route_path({"path": prefix, "root_path": prefix}) == ""
    twice = {"path": prefix + prefix + rest, "root_path": prefix}
    strip_repeated_prefix(twice)
    assert route_path(twice).endswith(rest)
    # A name that merely begins alike is another path.
    assert route_path({"path": f"{prefix}x{rest}", "root_path": prefix}) == (f"{prefix}x{rest}")
