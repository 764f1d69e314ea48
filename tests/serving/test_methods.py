"""HEAD where GET is."""

from amlr.serving.settings import ServerSettings
from fake_engine import FakeEngine
from live_server import LiveServer


def test_head_is_answered_wherever_get_is() -> None:
    settings = ServerSettings(warm_up=False)
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        described = client.get("/openapi.json").json()["paths"]
        paths = [path.replace("{name}", "fake") for path, ops in described.items() if "get" in ops]
        paths += ["/", "/docs", "/openapi.json", "/static/app.js", "/static/none.js", "/nowhere"]
        assert len(paths) > 10
        for path in paths:
            get, head = client.get(path), client.head(path)
            assert head.status_code == get.status_code, path
            assert head.content == b""
            assert head.headers.get("content-type") == get.headers.get("content-type")
            if path != "/metrics":  # which has counted the request before
                assert head.headers["content-length"] == get.headers["content-length"]
        # Several on one connection: nothing of a body may follow the head.
        assert client.post("/v1/tag", json={"text": "Rome"}).status_code == 200
        assert client.head("/v1/tag").status_code == 405
        metrics = client.get("/metrics").text
    assert 'amlr_requests_total{method="HEAD",route="/v2/health/live",status="200"} 1.0' in metrics


def test_probes_by_head_need_no_key_and_tell_readiness() -> None:
    settings = ServerSettings(warm_up=False, api_keys=("k",))
    with LiveServer(FakeEngine(), settings) as server, server.client() as client:
        assert client.head("/v2/health/ready").status_code == 200
        assert client.head("/metrics").status_code == 401
        server.service.begin_stopping()
        assert client.head("/v2/health/ready").status_code == 503
