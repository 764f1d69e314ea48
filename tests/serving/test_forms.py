"""Forms without files, as `curl -d` and browsers send them."""

import asyncio
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlr.serving import parsing
from amlr.serving.json_reading import parse
from amlr.serving.problems import ApiError
from amlr.serving.settings import ServerSettings
from fake_engine import FakeEngine
from live_server import LiveServer


@given(st.text("a%41Fé+ 0\n", max_size=40))
def test_fields_are_decoded_as_the_standard_library_does(text: str) -> None:
    try:
        expected = unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            parsing._urlencoded(b"text=" + text.encode(), 9)
    else:
        assert parsing._urlencoded(b"text=" + text.encode(), 9) == [("text", expected)]


def test_too_many_fields_are_refused() -> None:
    assert len(parsing._urlencoded(b"&".join([b"a=1"] * 9), 9)) == 9
    with pytest.raises(ApiError, match="at most 9 fields"):
        parsing._urlencoded(b"&".join([b"a=1"] * 9_000), 9)


def test_a_long_field_keeps_nobody_waiting() -> None:
    body = b"text=" + b"%41" * 400_000

    async def count() -> int:
        turns = 0
        reading = asyncio.create_task(parse(parsing._urlencoded, body, 9, inline=False))
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert reading.result() == [("text", "A" * 400_000)]
        return turns

    assert asyncio.run(count()) >= 4


def test_texts_come_back() -> None:
    settings = ServerSettings(warm_up=False)
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        for text in ("Zürich +1 & 50 % = 😀", "a\r\nb", "x" * 20_000):
            answer = client.post("/v1/tag", data={"text": text}).json()
            assert answer["entities"][0]["text"] == text.split(" ")[0]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        for body, status in (
            (b"text=%ff", 400),
            (b"", 422),
            (b"text=a&text=b", 422),
            (b"x=1", 422),
        ):
            assert client.post("/v1/tag", content=body, headers=headers).status_code == status
