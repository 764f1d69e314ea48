"""`/v1/tag` on a real server around the real engine."""

import base64
import io
import json
import socket
from typing import Any

import pytest
from PIL import Image

from amlr.runtime import Engine, Post, Result
from live_server import LiveServer

TEXT = "Kevin Love at Quicken Loans Arena in New York"


def png(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    image = Image.new("RGB", size, (seed * 37 % 256, 90, 200))
    image.putpixel((1, 1), (255, 0, seed % 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def plain(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(result.to_dict()))
    return value


def near(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal, but for scores: other batch mates may change their last digits."""
    found, expected = json.loads(json.dumps(found)), json.loads(json.dumps(expected))
    for one, other in zip(found["entities"], expected["entities"], strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
    return bool(found == expected)


def test_one_post_as_json(server: LiveServer, engine: Engine) -> None:
    with server.client() as client:
        answer = client.post("/v1/tag", json={"text": TEXT, "image": b64(png())})
    assert answer.status_code == 200
    assert near(answer.json(), plain(engine.tag(TEXT, png())))
    assert answer.json()["image_used"]
    assert "wait;dur=" in answer.headers["server-timing"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_one_post_as_a_form(server: LiveServer, engine: Engine) -> None:
    with server.client() as client:
        answer = client.post("/v1/tag", data={"text": TEXT}, files={"image": ("p.png", png())})
        words = client.post("/v1/tag", data={"text": TEXT, "words": "[[0, 5], [6, 10]]"})
    assert near(answer.json(), plain(engine.tag(TEXT, png())))
    assert near(words.json(), plain(engine.tag(TEXT, words=[(0, 5), (6, 10)])))


def test_many_posts_keep_their_order_and_fail_alone(server: LiveServer, engine: Engine) -> None:
    posts: list[dict[str, Any]] = [{"text": f"post {i} in Paris", "id": i} for i in range(40)]
    posts[3]["image"] = b64(png(3))
    posts[5]["image"] = "%%%"
    posts[7]["text"] = "x" * 20_001
    posts[9]["words"] = [[0, 99]]
    posts[11]["image"] = b64(b"no picture at all")
    with server.client() as client:
        results = client.post("/v1/tag", json={"posts": posts}).json()["results"]
    assert [r.pop("id") for r in results] == list(range(40))
    errors = {i: r["error"]["code"] for i, r in enumerate(results) if r["error"]}
    assert errors == {5: "image_invalid", 7: "text_too_long", 9: "words_invalid"}
    assert results[11]["warnings"][0]["code"] == "image_unreadable"
    assert results[3]["image_used"]
    expected = engine.tag_batch(
        [Post(p["text"], png(3) if i == 3 else None) for i, p in enumerate(posts)]
    )
    for i in set(range(40)) - {5, 7, 9, 11}:
        assert near(results[i], plain(expected[i]))


def test_many_posts_in_a_form_name_their_files(server: LiveServer) -> None:
    posts = [{"text": "a", "image": "one"}, {"text": "b"}, {"text": "c", "image": "lost"}]
    with server.client() as client:
        answer = client.post(
            "/v1/tag", data={"posts": json.dumps(posts)}, files={"one": ("x", png(1))}
        )
    one, two, three = answer.json()["results"]
    assert one["image_used"]
    assert not two["image_used"]
    assert three["error"]["code"] == "image_invalid"


WRONG = {
    "no object": 3,
    "text": {"text": 3},
    "no text": {"id": "a"},
    "unknown field": {"text": "a", "id": 5, "pic": "b"},
    "words": {"text": "a", "words": [["x", 1]]},
    "one word": {"text": "a", "words": [0, 1]},
    "too many words": {"text": "a", "words": [[0, 1]] * 20_001},
    "id is a list": {"text": "a", "id": [1]},
    "id is no number": {"text": "a", "id": float("nan")},
    "id is infinite": {"text": "a", "id": float("inf")},
    "id is true": {"text": "a", "id": True},
    "many fields": {"text": "a"} | {f"f{i}": 0 for i in range(1000)},
}


def strict_json(text: str) -> Any:
    """Parse as RFC 8259 says; Python alone would take NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("way", ["json", "form", "stream"])
def test_a_post_of_another_form_fails_alone(server: LiveServer, way: str) -> None:
    posts = [{"text": f"Paris {i}", "id": i} for i in range(3)] + [*WRONG.values()]
    with server.client() as client:
        if way == "json":
            body = json.dumps({"posts": posts}).encode()
            answer = client.post(
                "/v1/tag", content=body, headers={"Content-Type": "application/json"}
            )
        elif way == "form":
            answer = client.post(
                "/v1/tag", data={"posts": json.dumps(posts)}, files={"unused": b"x"}
            )
        else:
            body = "\n".join(map(json.dumps, posts)).encode()
            headers = {"Content-Type": "application/x-ndjson"}
            answer = client.post("/v1/tag/stream", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    results = [*map(strict_json, lines)] if way == "stream" else strict_json(answer.text)["results"]
    assert [r["error"] for r in results[:3]] == [None] * 3
    assert all(r["entities"] for r in results[:3])
    failed = dict(zip(WRONG, results[3:], strict=True))
    for name, result in failed.items():
        code = "words_invalid" if name == "too many words" else "body_invalid"
        assert result["error"]["code"] == code, name
        assert result["entities"] == []
    assert "text" in failed["text"]["error"]["message"]
    assert "id: " in failed["id is no number"]["error"]["message"]
    ids = {name: result["id"] for name, result in failed.items() if "id" in result}
    assert ids == {"no text": "a", "unknown field": 5}


@pytest.mark.parametrize(
    "value", [{"posts": 3}, {"posts": [], "x": 1}, {"posts": [{"text": "a"}], "deadline_ms": "1"}]
)
def test_a_list_of_another_form_is_refused_whole(server: LiveServer, value: Any) -> None:
    with server.client() as client:
        answer = client.post("/v1/tag", json=value)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "body_invalid")


def test_pictures_as_browsers_and_mail_write_them(server: LiveServer, engine: Engine) -> None:
    content = png(7)
    wrapped = base64.encodebytes(content).decode()
    forms = [b64(content), wrapped, wrapped.replace("\n", "\r\n")]
    forms += [f"data:image/png;base64,{form}" for form in forms]
    forms.append("DATA:image/png;charset=utf-8;BASE64," + b64(content))
    expected = plain(engine.tag(TEXT, content))
    tensors = [
        {"name": name, "shape": [len(forms)], "datatype": "BYTES", "data": data}
        for name, data in (("text", [TEXT] * len(forms)), ("image", forms))
    ]
    with server.client() as client:
        posts = [{"text": TEXT, "image": form} for form in forms]
        results = client.post("/v1/tag", json={"posts": posts}).json()["results"]
        (output,) = client.post("/v2/models/tiny/infer", json={"inputs": tensors}).json()["outputs"]
    for result in [*results, *map(json.loads, output["data"])]:
        assert result["image_used"]
        assert near(result, expected)


@pytest.mark.parametrize(
    ("text", "start", "end"), [("😀 Paris", 2, 7), ("\u202eParis", 0, 6), ("e\u0301 Rome", 0, 2)]
)
def test_offsets_count_characters(server: LiveServer, text: str, start: int, end: int) -> None:
    with server.client() as client:
        answer = client.post("/v1/tag", json={"text": text}).json()
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "json_invalid"),
        (b"\xff\xfe", 400, "json_invalid"),
        (b"[" * 100_000, 400, "json_invalid"),
        (b"[]", 422, "body_invalid"),
        (b"{}", 422, "body_invalid"),
        (b'{"text": 3}', 422, "body_invalid"),
        (b'{"text": "a", "pic": "b"}', 422, "body_invalid"),
        (b'{"posts": []}', 422, "body_invalid"),
        (b'{"text": "a", "deadline_ms": 0}', 422, "body_invalid"),
        (b'{"text": "a", "words": [[0]]}', 422, "body_invalid"),
        (b'{"text": "a", "words": [[1, 0]]}', 422, "words_invalid"),
        (b'{"text": "a", "image": "*"}', 422, "image_invalid"),
        (b'{"text": "a", "image_url": "http://example.org/a.png"}', 422, "url_forbidden"),
        (b'{"posts": [' + b",".join([b'{"text": ""}'] * 257) + b"]}", 413, "too_many_posts"),
    ],
)
def test_bad_bodies(server: LiveServer, body: bytes, status: int, code: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/tag", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "form",
    [
        {"data": {"txt": "a"}},
        {"data": {}, "files": {"image": b"x"}},
        {"data": {"text": "a"}, "files": {"other": b"x"}},
        {"data": {"text": "a", "posts": "[]"}, "files": {"image": b"x"}},
        {"data": {"posts": "[]"}, "files": {"image": b"x"}},
        {"data": {"posts": "{"}, "files": {"image": b"x"}},
        {"data": {"text": "a", "deadline_ms": "soon"}, "files": {"image": b"x"}},
    ],
)
def test_bad_forms(server: LiveServer, form: dict[str, Any]) -> None:
    files = form.get("files") or {"image": b"x"}
    with server.client() as client:
        answer = client.post("/v1/tag", data=form["data"], files=files)
    assert answer.status_code == 422, answer.text


def test_form_without_boundary_and_other_types(server: LiveServer) -> None:
    with server.client() as client:
        headers = {"Content-Type": "multipart/form-data"}
        assert client.post("/v1/tag", content=b"x", headers=headers).status_code == 400
        assert client.post("/v1/tag", content=b"x").status_code == 415
        assert client.get("/v1/tag").status_code == 405
        assert client.get("/nowhere").json()["error"]["code"] == "not_found"


def test_request_ids_are_kept_where_they_are_harmless(server: LiveServer) -> None:
    with server.client() as client:
        kept = client.get("/v2", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"]
        replaced = client.get("/v2", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert kept == "abc-1"
    assert len(replaced) == 32


def test_stream_answers_lines_in_order(server: LiveServer) -> None:
    lines = [json.dumps({"id": i, "text": f"Paris {i}"}) for i in range(120)]
    lines[50] = "not json"
    lines[60] = '{"id": 60}'
    with server.client() as client:
        answer = client.post(
            "/v1/tag/stream",
            content="\n".join(lines).encode(),
            headers={"Content-Type": "application/x-ndjson"},
        )
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [r.get("id") for r in results] == [None if i == 50 else i for i in range(120)]
    assert results[50]["error"]["code"] == "json_invalid"
    assert results[60]["error"]["code"] == "body_invalid"
    assert all(r["error"] is None for i, r in enumerate(results) if i not in (50, 60))


def test_a_stream_answers_a_client_that_waits_for_each_answer(server: LiveServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /v1/tag/stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\n"
    with (
        socket.create_connection((host, int(port)), timeout=20) as connection,
        connection.makefile("rb") as answer,
    ):
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for number in range(3):
            line = json.dumps({"id": number, "text": TEXT}) + "\n"
            connection.sendall(f"{len(line):x}\r\n{line}\r\n".encode())
            while not (received := answer.readline()).startswith(b"{"):
                assert received
            assert json.loads(received)["id"] == number
        connection.sendall(b"0\r\n\r\n")


def test_explanation(server: LiveServer, engine: Engine) -> None:
    with server.client() as client:
        answer = client.post("/v1/explain", json={"text": TEXT, "image": b64(png(5))}).json()
        alone = client.post("/v1/explain", json={"text": TEXT}).json()
        two = client.post("/v1/explain", json={"posts": [{"text": "a"}, {"text": "b"}]})
        bad = client.post("/v1/explain", json={"text": "a", "words": [[1, 0]]})
    assert near(answer["result"], plain(engine.tag(TEXT, png(5))))
    assert near(answer["without_image"], plain(engine.tag(TEXT)))
    assert len(answer["attention"]) == len(answer["result"]["entities"]) > 0
    grids = [grid for grid in answer["attention"] if grid is not None]
    assert grids
    for grid in grids:
        assert sum(map(sum, grid)) == pytest.approx(1, abs=1e-3)
    assert alone["attention"] == [None] * len(alone["result"]["entities"])
    assert two.status_code == 422
    assert bad.status_code == 422


def test_metrics(server: LiveServer) -> None:
    with server.client() as client:
        client.post("/v1/tag", json={"text": TEXT, "image": b64(png())})
        text = client.get("/metrics").text
    for name in (
        'amlr_requests_total{method="POST",route="/v1/tag",status="200"}',
        'amlr_posts_total{outcome="ok"}',
        "amlr_entities_total{label=",
        "amlr_queue_posts 0.0",
        "amlr_batch_posts_bucket",
        "amlr_queue_wait_seconds_bucket",
        "amlr_compute_seconds_count",
        "amlr_padding_tokens_total",
        "amlr_image_cache_hits_total",
        'amlr_refusals_total{cause="deadline"}',
        "amlr_ready 1.0",
        'amlr_engine_info{model="tiny",precision="fp32",provider="onnxruntime-cpu"',
    ):
        assert name in text, name
