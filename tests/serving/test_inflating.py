"""Compressed bodies: inflated in bounded pieces, counted after inflating, refused when broken."""

import asyncio
import gzip
import itertools
import json
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from amlr.serving.inflating import PIECE_BYTES, inflated
from amlr.serving.problems import ApiError
from amlr.serving.settings import RequestLimits, ServerSettings
from fake_engine import FakeEngine
from live_server import LiveServer

JSON = {"Content-Type": "application/json"}


async def read(chunks: Iterable[bytes], encoding: str = "gzip") -> list[bytes]:
    """The pieces that an application is handed, which must end exactly once."""
    sent = [*chunks] or [b""]
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(sent)}
        for i, chunk in enumerate(sent)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> Message:
        return messages.pop(0)

    take = inflated(receive, encoding)
    pieces = []
    while True:
        message = await take()
        assert message["type"] == "http.request"
        pieces.append(message["body"])
        if not message["more_body"]:
            break
    assert (await take())["type"] == "http.disconnect"
    return pieces


@given(
    body=st.binary(max_size=300) | st.integers(0, 3 * PIECE_BYTES).map(lambda n: b"a" * n),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    is_gzip=st.booleans(),
    members=st.integers(1, 2),
)
def test_whatever_the_chunks_the_body_comes_back(
    body: bytes, cuts: list[int], is_gzip: bool, members: int
) -> None:
    packed = (gzip.compress(body) if is_gzip else zlib.compress(body)) * members
    edges = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    chunks = [packed[a:b] for a, b in itertools.pairwise(edges)]
    pieces = asyncio.run(read(chunks))
    assert b"".join(pieces) == body * members
    assert max(map(len, pieces)) <= PIECE_BYTES


@given(st.binary(min_size=50, max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_broken_bodies_are_refused_or_whole(body: bytes, position: int, value: int) -> None:
    packed = gzip.compress(body)
    with pytest.raises(ApiError) as cut:
        asyncio.run(read([packed[:position]]))
    assert (cut.value.status, cut.value.code) == (400, "encoding_invalid")
    changed = packed[:position] + bytes([value]) + packed[position + 1 :]
    try:
        pieces = asyncio.run(read([changed]))
    except ApiError as error:
        refusal = error
    else:
        assert b"".join(pieces) == body  # the byte means nothing
        return
    assert refusal.code == "encoding_invalid"


def test_a_bomb_is_never_inflated_whole() -> None:
    bomb = gzip.compress(b"a" * 50_000_000, compresslevel=1)
    limits = RequestLimits(max_body_bytes=1_000_000)
    settings = ServerSettings(warm_up=False, limits=limits)
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        tracemalloc.start()
        answer = client.post("/v1/tag", content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert peak < 20_000_000
        assert server.service.queue.size_bytes == 0


@pytest.mark.parametrize("path", ["/v1/tag", "/v1/tag/stream", "/v2/models/fake/infer"])
def test_every_route_takes_gzip(path: str) -> None:
    value: dict[str, object] = {"text": "Rome"}
    if path.startswith("/v2"):
        value = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Rome"]}]}
    kind = "application/x-ndjson" if path.endswith("stream") else "application/json"
    headers = {"Content-Type": kind, "Content-Encoding": "GZIP"}
    settings = ServerSettings(warm_up=False)
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        body = json.dumps(value).encode()
        answer = client.post(path, content=gzip.compress(body), headers=headers)
        assert answer.status_code == 200
        assert "Rome" in answer.text


def test_what_is_wrong_with_an_encoding_is_said() -> None:
    packed = gzip.compress(b'{"text": "Rome"}')
    settings = ServerSettings(warm_up=False)
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        unsaid = client.post("/v1/tag", content=packed, headers=JSON)
        assert unsaid.status_code == 400
        assert "Content-Encoding: gzip" in unsaid.json()["error"]["message"]
        other = client.post("/v1/tag", content=packed, headers={**JSON, "Content-Encoding": "br"})
        assert other.status_code == 415
        assert other.json()["error"]["code"] == "unsupported_content_encoding"
        assert "gzip" in other.headers["accept-encoding"]
        wrong = client.post(
            "/v1/tag", content=b'{"text": "Rome"}', headers={**JSON, "Content-Encoding": "gzip"}
        )
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "encoding_invalid")
