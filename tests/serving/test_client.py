"""The client against a real server, and its retries against a scripted one."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from amlr.errors import InputError, OverloadedError
from amlr.runtime import Engine, Post, Result
from amlr.serving.client import AsyncClient, Client, Retries, ServerError, UnreachableError
from amlr.serving.settings import ServerSettings
from fake_engine import FakeEngine, expected_entities
from live_server import LiveServer

QUICK = Retries(attempts=4, base_s=0.001, max_s=0.01)


def test_sync_and_async(tmp_path: Any) -> None:
    picture = tmp_path / "p.bin"
    picture.write_bytes(b"x")
    settings = ServerSettings(warm_up=False, api_keys=("k",))
    texts = [f"word{i} here" for i in range(70)]
    with LiveServer(FakeEngine(), settings) as server:
        with Client(server.url, api_key="k") as client:
            assert client.ready()
            assert client.tag("Paris", picture).image_used
            assert client.tag("Paris", b"x", deadline_ms=5000).entities[0].text == "Paris"
            assert client.tag_batch([]) == []
            results = list(client.tag_many(map(Post, texts)))
            assert [r.entities for r in results] == [expected_entities(t) for t in texts]
            with pytest.raises(ServerError) as failed:
                client.tag_batch([Post("")] * 257)
            assert (failed.value.status, failed.value.code) == (413, "too_many_posts")
            assert failed.value.request_id
        with Client(server.url, api_key="wrong") as stranger, pytest.raises(ServerError):
            stranger.tag("a")

        async def use() -> None:
            async with AsyncClient(server.url, api_key="k") as client:
                assert await client.ready()
                answers = await asyncio.gather(*(client.tag(text) for text in texts))
                assert [a.entities for a in answers] == [expected_entities(t) for t in texts]
                many = [r async for r in client.tag_many(map(Post, texts), size=9)]
                assert [r.entities for r in many] == [expected_entities(t) for t in texts]
                words = await client.tag_batch([Post("New York", None, [(0, 3), (4, 8)])])
                assert words[0].error is None

        asyncio.run(use())


def test_odd_posts_are_answered_as_by_the_engine(engine: Engine, tmp_path: Any) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    posts = [
        Post("Kevin Love in Paris"),
        Post("Rome", tmp_path / "nope.jpg"),
        Post("Rome", str(tmp_path)),
        Post("Rome", "nul\0.jpg"),
        Post("Rome", tmp_path / "empty.png"),
        Post("\ud83d Paris \udc00"),
        Post("Kevin 😀 Love", None, [(0, 5), (8, 12)]),
        Post("Rome", None, [(0, 99)]),
    ]
    expected = engine.tag_batch(posts)

    async def use(url: str) -> list[Result]:
        async with AsyncClient(url) as client:
            return await client.tag_batch(posts)

    with LiveServer(engine, ServerSettings(warm_up=False)) as server:
        with Client(server.url) as client:
            answers = client.tag_batch(posts)
        assert asyncio.run(use(server.url)) == answers
    for post, answer, wanted in zip(posts, answers, expected, strict=True):
        assert [w["code"] for w in answer.warnings] == [w["code"] for w in wanted.warnings], post
        assert (answer.error is None) == (wanted.error is None), post
        spans = [(e.start, e.end, e.text, e.label) for e in answer.entities]
        assert spans == [(e.start, e.end, e.text, e.label) for e in wanted.entities]
    assert [len(a.warnings) for a in answers] == [0, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("key", ["k\n", "k\r\n", " k", "k\x00k", "a\nb", "\ufeff \n"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_that_no_header_can_hold_is_refused_at_once(kind: Any, key: str) -> None:
    with pytest.raises(InputError, match="strip"):
        kind(api_key=key)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://[::1", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(InputError, match="address"):
        Client(url)


def test_any_other_key_reaches_the_server() -> None:
    keys = ("clé-ключ", "two words")
    with LiveServer(FakeEngine(), ServerSettings(warm_up=False, api_keys=keys)) as server:
        for key in keys:
            with Client(server.url, api_key=key) as client:
                assert client.tag("Paris").error is None


def test_what_cannot_be_sent_is_not_tried_again() -> None:
    answer, calls = scripted(httpx.LocalProtocolError("Illegal header value"))
    with client_of(answer) as client, pytest.raises(InputError, match="cannot be sent"):
        client.tag("a")
    assert len(calls) == 1


def scripted(*outcomes: int | Exception) -> tuple[Callable[[httpx.Request], Any], list[int]]:
    calls: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        outcome = outcomes[min(len(calls), len(outcomes) - 1)]
        calls.append(1)
        if isinstance(outcome, Exception):
            raise outcome
        value: Any = {"error": {"code": "c", "message": "m"}}
        if outcome == 200:
            result = {"entities": [], "image_used": False, "provider": "", "precision": ""}
            value = {"results": [{**result, "warnings": [], "error": None}]}
        return httpx.Response(outcome, json=value, headers={"Retry-After": "0"})

    return answer, calls


def client_of(answer: Callable[[httpx.Request], Any]) -> Client:
    client = Client("http://server", retries=QUICK)
    client.close()
    client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    return client


@pytest.mark.parametrize("outcomes", [(200,), (429, 503, 200), (httpx.ConnectError("gone"), 200)])
def test_tries_again_where_that_is_right(outcomes: Any) -> None:
    answer, calls = scripted(*outcomes)
    with client_of(answer) as client:
        assert client.tag("a").error is None
    assert len(calls) == len(outcomes)


def test_gives_up_in_the_end() -> None:
    answer, calls = scripted(429)
    with client_of(answer) as client, pytest.raises(OverloadedError):
        client.tag("a")
    assert len(calls) == QUICK.attempts
    answer, calls = scripted(httpx.ReadError("gone"))
    with client_of(answer) as client, pytest.raises(UnreachableError):
        client.tag("a")
    assert len(calls) == QUICK.attempts


@pytest.mark.parametrize("status", [400, 401, 413, 422, 500])
def test_other_errors_are_final(status: int) -> None:
    answer, calls = scripted(status)
    with client_of(answer) as client, pytest.raises(ServerError):
        client.tag("a")
    assert len(calls) == 1


def test_pauses_grow_are_random_and_respect_the_server() -> None:
    retries = Retries(base_s=0.1, max_s=2.0)
    for attempt in range(8):
        pauses = [retries.pause_s(attempt, None) for _ in range(50)]
        most = min(2.0, 0.1 * 2**attempt)
        assert max(pauses) <= most
        assert max(pauses) - min(pauses) > most / 2
    assert all(1 <= retries.pause_s(0, "1") <= 1.1 for _ in range(20))
    assert retries.pause_s(0, "60") == 2.0
    assert retries.pause_s(0, "Wed, 21 Oct") <= 0.1
