"""What an unfriendly or unlucky client meets."""

import json
import logging
import socket
import time
from typing import Any

import pytest

from amlr.serving.logs import JsonFormatter
from amlr.serving.settings import (
    BatchSettings,
    QueueSettings,
    RequestLimits,
    ServerSettings,
    UrlSettings,
)
from fake_engine import FakeEngine, expected_entities
from live_server import LiveServer


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(warm_up=False, **changes)


def test_api_key() -> None:
    with (
        LiveServer(FakeEngine(), settings(api_keys=("one", "two"))) as server,
        server.client() as client,
    ):
        wrong: list[list[tuple[bytes, bytes]]] = [
            [],
            [(b"X-API-Key", b"tw")],
            [(b"X-API-Key", b"\xfc")],
            [(b"Authorization", b"Bearer")],
            [(b"Authorization", b"Basic one")],
        ]
        for headers in wrong:
            answer = client.post("/v1/tag", json={"text": "a"}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ({"X-API-Key": "two"}, {"Authorization": "bearer one"}):
            answer = client.post("/v1/tag", json={"text": "a"}, headers=key)
            assert answer.status_code == 200
        assert client.get("/metrics").status_code == 401
        for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/static/app.js"):
            assert client.get(path).status_code == 200
        assert client.get("/static/../cli.py").status_code in (401, 404)
        assert client.get("/openapi.json").json()["security"]


def test_body_limits() -> None:
    limits = RequestLimits(max_body_bytes=1000)
    with LiveServer(FakeEngine(), settings(limits=limits)) as server, server.client() as client:
        big = client.post("/v1/tag", json={"text": "a" * 2000})
        assert big.status_code == 413
        # Without a length the limit holds just as well.
        chunks = iter([b'{"text": "', *[b"a" * 100] * 50, b'"}'])
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/tag", content=chunks, headers=headers).status_code == 413
        assert client.post("/v1/tag", json={"text": "fits"}).status_code == 200
        assert server.service.queue.size_bytes == 0


def test_bytes_under_way_are_bounded() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    queue = QueueSettings(max_bytes=5000)
    with LiveServer(engine, settings(queue=queue)) as server:
        body = json.dumps({"text": "a" * 3000}).encode()
        with socket.create_connection(server.address) as first:
            first.sendall(head(len(body)) + body)
            wait(lambda: server.service.queue.size_bytes > 3000)
            with server.client() as client:
                refused = client.post("/v1/tag", content=body, headers=JSON)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            engine.gate.set()
            assert b"200 OK" in first.recv(10_000)
        wait(lambda: server.service.queue.size_bytes == 0)


JSON = {"Content-Type": "application/json"}


def head(length: int) -> bytes:
    return (
        b"POST /v1/tag HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def wait(test: Any) -> None:
    end = time.monotonic() + 10
    while not test():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_slow_senders_are_cut_off() -> None:
    limits = RequestLimits(body_timeout_s=0.2, header_timeout_s=0.2)
    with LiveServer(FakeEngine(), settings(limits=limits)) as server:
        address = server.address
        with socket.create_connection(address, 10) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(address, 10) as slow_head:
            slow_head.sendall(b"POST /v1/tag HT")
            assert slow_head.recv(100) == b""
        with socket.create_connection(address, 10) as slow_body:
            slow_body.sendall(head(100) + b"{")
            assert b" 408 " in slow_body.recv(1000)
        with server.client() as client:  # nobody else is harmed, also not on a kept connection
            assert client.post("/v1/tag", json={"text": "a"}).status_code == 200
            time.sleep(0.3)
            assert client.post("/v1/tag", json={"text": "a"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/tag", "/v1/explain", "/v2/models/fake/infer"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_leaving_while_sending_is_no_error_of_the_server(
    path: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveServer(FakeEngine(), settings()) as server, caplog.at_level(logging.INFO):
        with socket.create_connection(server.address, 10) as one:
            begin = head(1000).replace(b"/v1/tag", path.encode())
            one.sendall(begin.replace(b"application/json", kind.encode()) + b"--b")
            wait(lambda: server.service.queue.size_bytes == 1000)
        wait(lambda: any(r.name == "amlr.serving.access" for r in caplog.records))
        assert server.service.queue.size_bytes == 0
    (access,) = [
        json.loads(JsonFormatter().format(r)) for r in caplog.records if "access" in r.name
    ]
    assert (access["route"], access["status"], access["error"]) == (
        path.replace("fake", "{name}"),
        499,
        "client_left",
    )
    assert max(r.levelno for r in caplog.records) < logging.ERROR


def test_work_of_a_client_that_left_is_dropped() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    batch = BatchSettings(max_posts=1)
    with LiveServer(engine, settings(batch=batch)) as server:
        address = server.address
        sockets = [socket.create_connection(address, 10) for _ in range(6)]
        for i, one in enumerate(sockets):
            body = json.dumps({"text": f"post{i}"}).encode()
            one.sendall(head(len(body)) + body)
        wait(lambda: len(server.service.queue) == 5)
        for one in sockets:
            one.close()
        wait(lambda: server.service.metrics.cancelled._value.get() == 6)
        engine.gate.set()
        with server.client() as client:
            answer = client.post("/v1/tag", json={"text": "after it all"}).json()
        assert answer["entities"][0]["text"] == "after"
        # Only the post that was under way and the last one were computed.
        assert len(engine.batches) == 2


def test_deadlines() -> None:
    engine = FakeEngine(0.02)
    with LiveServer(engine, settings()) as server, server.client() as client:
        late = client.post("/v1/tag", json={"text": "a"}, headers={"X-Deadline-Ms": "1"})
        assert late.status_code == 429
        assert late.json()["error"]["code"] == "deadline"
        assert late.headers["retry-after"].isdigit()
        fine = client.post("/v1/tag", json={"text": "a", "deadline_ms": 5000})
        assert fine.status_code == 200
        for value in ("x", "-1", "0", "1e3", "99999999999"):
            bad = client.post("/v1/tag", json={"text": "a"}, headers={"X-Deadline-Ms": value})
            assert bad.status_code == 422


def test_deadline_counts_from_the_head() -> None:
    body = json.dumps({"text": "a", "deadline_ms": 1000}).encode()
    with (
        LiveServer(FakeEngine(), settings()) as server,
        socket.create_connection(server.address, 10) as one,
    ):
        for pause_s, status in ((0.0, b" 200 "), (1.1, b" 429 ")):
            one.sendall(head(len(body)) + body[:5])
            time.sleep(pause_s)
            one.sendall(body[5:])
            assert status in one.recv(10_000)


def test_a_failing_engine_turns_unready_and_back() -> None:
    broken = True

    def trouble(posts: Any) -> None:
        if broken:
            raise RuntimeError("/secret/path/of/the/engine")

    with LiveServer(FakeEngine(trouble=trouble), settings()) as server, server.client() as client:
        for _ in range(3):
            answer = client.post("/v1/tag", json={"text": "a"})
            assert answer.status_code == 503
            assert "secret" not in answer.text
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        assert "amlr_ready 0.0" in client.get("/metrics").text
        broken = False
        wait(lambda: server.service.ready)
        assert client.post("/v1/tag", json={"text": "a"}).status_code == 200


def test_unexpected_errors_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with LiveServer(FakeEngine(), settings()) as server:

        def explode(*args: Any, **options: Any) -> None:
            raise ZeroDivisionError("/secret/path")

        monkeypatch.setattr(server.service, "submit", explode)
        with server.client() as client:
            answer = client.post("/v1/tag", json={"text": "a"})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["error"]["request_id"]


def test_logs_hold_no_texts_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    secret = "Nobody must read this"
    for log_texts in (False, True):
        caplog.clear()
        with (
            LiveServer(FakeEngine(), settings(log_texts=log_texts)) as server,
            caplog.at_level(logging.INFO),
            server.client() as client,
        ):
            client.post("/v1/tag", json={"text": secret})
            client.post("/v1/tag", json={"text": secret, "image": "*"})
        lines = [JsonFormatter().format(r) for r in caplog.records if r.name.startswith("amlr")]
        access = [json.loads(line) for line in lines if '"request"' in line]
        assert [(a["route"], a["status"]) for a in access] == [("/v1/tag", 200), ("/v1/tag", 422)]
        assert access[0].keys() >= {"time", "request_id", "duration_ms", "posts", "bytes_in"}
        assert any(secret in line for line in lines) == log_texts


def test_stopping_finishes_accepted_work() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with LiveServer(engine, settings()) as server:
        address = server.address
        with socket.create_connection(address, 10) as one:
            body = b'{"text": "last words"}'
            one.sendall(head(len(body)) + body)
            wait(lambda: server.service.pool.in_flight == 1)
            server._server.handle_exit(15, None)
            wait(lambda: server._server.should_exit)
            engine.gate.set()
            answer = one.recv(10_000)
        assert b"200 OK" in answer
        assert expected_entities("last words")[0].text.encode() in answer
        server._thread.join(20)
        assert server.service.finished


@pytest.mark.parametrize("allow", [(), ("example.org",)])
def test_addresses_are_not_fetched_unless_allowed(allow: tuple[str, ...]) -> None:
    with (
        LiveServer(FakeEngine(), settings(urls=UrlSettings(allow=allow))) as server,
        server.client() as client,
    ):
        for url in (
            "http://127.0.0.1:80/a.png",
            "http://localhost/a.png",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "http://user@example.org/a.png",
            "http://example.org:8080/a.png",
            "http://example.org.evil.test/a.png",
            "nonsense",
            "http://[::1",
        ):
            answer = client.post("/v1/tag", json={"text": "a", "image_url": url})
            assert answer.status_code == 422, url
            assert answer.json()["error"]["code"] == "url_forbidden"
