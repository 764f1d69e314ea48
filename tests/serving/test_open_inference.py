"""The Open Inference Protocol, by hand and with Triton's own client."""

import base64
import importlib.util
import json
import struct
from typing import Any

import numpy as np
import pytest

from amlr.runtime import Engine
from amlr.serving.problems import ApiError
from amlr.serving.v2_tensors import encode_output, parse_infer
from live_server import LiveServer
from requirements import require

INFER = "/v2/models/tiny/infer"


def test_health_and_metadata(server: LiveServer) -> None:
    with server.client() as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json()["ready"]
        assert client.get("/v2/models/tiny/ready").status_code == 200
        model = client.get("/v2/models/tiny").json()
        missing = client.get("/v2/models/other")
    assert [i["name"] for i in model["inputs"]] == ["text", "image"]
    assert missing.status_code == 404
    assert isinstance(missing.json()["error"], str)


def test_infer_as_json(server: LiveServer, engine: Engine) -> None:
    texts = ["Kevin Love in Paris", "Rome"]
    body = {
        "id": "7",
        "inputs": [
            {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [[t] for t in texts]},
            {"name": "image", "shape": [2, 1], "datatype": "BYTES", "data": ["", ""]},
        ],
    }
    with server.client() as client:
        answer = client.post(INFER, json=body).json()
    (output,) = answer["outputs"]
    assert (answer["id"], output["shape"]) == ("7", [2, 1])
    for text, result in zip(texts, map(json.loads, output["data"]), strict=True):
        found = [(e["start"], e["end"], e["label"]) for e in result["entities"]]
        assert found == [(e.start, e.end, e.label) for e in engine.tag(text).entities]


def test_triton_client(server: LiveServer, engine: Engine) -> None:
    has_it = importlib.util.find_spec("tritonclient") is not None
    require("tritonclient", found=has_it, reason="the package tritonclient[http]")
    http: Any = importlib.import_module("tritonclient.http")
    texts = [f"Kevin Love {i} in Paris" for i in range(20)]
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_model_metadata("tiny")["name"] == "tiny"
        for is_binary in (True, False):
            tensor = http.InferInput("text", [20, 1], "BYTES")
            tensor.set_data_from_numpy(
                np.array(texts, np.object_).reshape(20, 1), binary_data=is_binary
            )
            asked = [http.InferRequestedOutput("result", binary_data=is_binary)]
            for outputs in (asked, None):
                answer = client.infer("tiny", [tensor], outputs=outputs)
                results = answer.as_numpy("result")
                assert results.shape == (20, 1)
                for text, value in zip(texts, results.reshape(-1), strict=True):
                    found = [(e["start"], e["end"]) for e in json.loads(value)["entities"]]
                    assert found == [(e.start, e.end) for e in engine.tag(text).entities]
    finally:
        client.close()


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    return {"inputs": [tensor | changes]}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": ["text"]},
        request(name="other"),
        request(datatype="FP32"),
        request(shape=[2]),
        request(shape=[]),
        request(shape=[0]),
        request(shape=[True]),
        request(shape=[10**9]),
        request(data=[1]),
        request(data="a"),
        request(parameters={"binary_data_size": 4}),
        request(parameters={"binary_data_size": -1}),
        request(parameters=[]),
        {**request(), "id": 3},
        {**request(), "parameters": {"timeout": -1}},
        {**request(), "parameters": {"timeout": "x"}},
        {**request(), "outputs": [{"name": "other"}]},
        {**request(), "outputs": "result"},
        {"inputs": request()["inputs"] * 2},
        {"inputs": [*request()["inputs"], {**request(name="image", data=["*"])["inputs"][0]}]},
    ],
)
def test_bad_requests_are_refused(value: Any) -> None:
    with pytest.raises(ApiError) as refused:
        parse_infer(json.dumps(value).encode(), None)
    assert refused.value.status == 400


@pytest.mark.parametrize("data", [b"\x01", b"\x05\0\0\0a", b"\x01\0\0\0\xff"])
def test_bad_binary_data_is_refused(data: bytes) -> None:
    head = json.dumps(request(parameters={"binary_data_size": len(data)})).encode()
    with pytest.raises(ApiError):
        parse_infer(head + data, len(head))
    with pytest.raises(ApiError):
        parse_infer(head + data + b"more", len(head))
    with pytest.raises(ApiError):
        parse_infer(head, len(head) + 1)


def test_binary_both_ways() -> None:
    picture = b"\x00\xff picture"
    texts = struct.pack("<I", 5) + "é\u20ac".encode()
    data = texts + struct.pack("<I", len(picture)) + picture
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
        for name, size in (("text", len(texts)), ("image", len(data) - len(texts)))
    ]
    head = json.dumps(
        {"inputs": inputs, "parameters": {"binary_data_output": True, "timeout": 500_000}}
    ).encode()
    parsed = parse_infer(head + data, len(head))
    assert parsed.texts == ("é\u20ac",)
    assert parsed.images == (picture,)
    assert parsed.deadline_s == 0.5
    body, length = encode_output(parsed, "m", "1", [b"{}"])
    assert length is not None
    assert body[length:] == struct.pack("<I", 2) + b"{}"
    plain = parse_infer(json.dumps(request(name="text")).encode(), None)
    assert encode_output(plain, "m", "1", [b"{}"])[1] is None


def test_picture_in_json_is_base64() -> None:
    image = {**request(name="image")["inputs"][0], "data": [base64.b64encode(b"pic").decode()]}
    assert parse_infer(
        json.dumps({"inputs": [*request()["inputs"], image]}).encode(), None
    ).images == (b"pic",)
