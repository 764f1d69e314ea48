"""Pages of other origins: only those the operator names, never with cookies."""

from typing import Any

import pytest

from amlr.errors import InputError
from amlr.serving.settings import ServerSettings
from fake_engine import FakeEngine
from live_server import LiveServer

PAGE = "https://page.example"
ASKED = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-api-key, x-deadline-ms",
}


def serve(*origins: str, **changes: Any) -> LiveServer:
    return LiveServer(FakeEngine(), ServerSettings(warm_up=False, cors_origins=origins, **changes))


def test_off_by_default() -> None:
    with serve() as server, server.client() as client:
        assert client.options("/v1/tag", headers=ASKED).status_code == 405
        answer = client.post("/v1/tag", json={"text": "Rome"}, headers={"Origin": PAGE})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
def test_named_origins_may_ask_without_cookies(origins: tuple[str, ...]) -> None:
    with serve(*origins, api_keys=("k",)) as server, server.client() as client:
        first = client.options("/v1/tag", headers=ASKED)
        assert first.status_code == 200  # without a key: browsers send none beforehand
        allowed = first.headers["access-control-allow-headers"].lower()
        assert {"authorization", "x-api-key", "content-type", "x-deadline-ms"} <= {
            name.strip() for name in allowed.split(",")
        }
        asked = {"Origin": PAGE, "X-API-Key": "k"}
        answers = [
            first,
            client.post("/v1/tag", json={"text": "Rome"}, headers=asked),
            client.post("/v1/tag", json={"text": "Rome"}, headers={"Origin": PAGE}),
            client.post("/v1/tag", content=b"{", headers=asked),
            client.head("/v2/health/live", headers=asked),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 401, 415, 200]
        for answer in answers:
            allow = answer.headers["access-control-allow-origin"]
            assert allow == ("*" if origins == ("*",) else PAGE)
            assert "access-control-allow-credentials" not in answer.headers
        assert "x-request-id" in answers[1].headers["access-control-expose-headers"].lower()
        assert "CORS" in client.get("/openapi.json").json()["info"]["description"]


def test_other_origins_may_not() -> None:
    with serve(PAGE) as server, server.client() as client:
        for origin in ("https://page.example.evil.test", "http://page.example", "null"):
            assert client.options("/v1/tag", headers=ASKED | {"Origin": origin}).status_code == 400
            answer = client.post("/v1/tag", json={"text": "Rome"}, headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["page.example", f"{PAGE}/", f"{PAGE}/x", "https://", "", "null", "https://A.example"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(InputError, match="no origin"):
        ServerSettings(cors_origins=(origin,))


@pytest.mark.parametrize("origin", ["*", "https://a.example:8443", "http://[::1]:3000"])
def test_what_is_an_origin_is_taken(origin: str) -> None:
    assert ServerSettings(cors_origins=(origin,)).cors_origins == (origin,)
