"""Generated requests and rubbish under a running server: no answer is a 500, none is wrong."""

import base64
import itertools
import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from amlr.runtime import Engine, Post
from amlr.serving.app import create_app
from amlr.serving.client import Client
from amlr.serving.settings import RequestLimits, ServerSettings
from drawings import saved, smooth
from live_server import LiveServer
from requirements import require

Request = tuple[str, dict[str, str], bytes]
WANTED = {200, 400, 404, 413, 415, 422, 429}
FORM, JSON = "multipart/form-data; boundary=b0undary", "application/json"
TENSORS = "/v2/models/tiny/infer"


def pictures() -> Iterator[bytes]:
    """Small pictures of every mode that a format can hold."""
    modes = ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA")
    forms = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
    for mode, form in itertools.product(modes, forms):
        try:
            yield saved(Image.new(mode, (23, 17)), form)
        except (OSError, KeyError, ValueError):
            continue


PICTURES = tuple(pictures())
# Where to cut how many bytes and what to put there: flips, cuts, insertions.
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 20), st.binary(max_size=8)),
                 max_size=8)  # fmt: skip


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, new in edits:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + cut :]
    return content


# By number: Hypothesis describes strategies by what they sample from.
PICTURE = st.builds(edited, st.integers(0, len(PICTURES) - 1).map(PICTURES.__getitem__), EDITS)
BASE64 = PICTURE.map(lambda content: base64.b64encode(content).decode())
NAMES = st.sampled_from(("text", "image", "words", "id", "posts", "deadline_ms", "image_url"))
VALUE = st.recursive(
    st.sampled_from((None, True, False, 0, -1, 3, 2**63, 10**400, 0.5, -1e308))
    | st.text(st.sampled_from("aé😀\u202e\0\ud800 \n#@/"), max_size=30)
    | BASE64,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def json_requests(draw: st.DrawFn) -> Request:
    """A body for `/v1`, often of the right outer form."""
    content = draw(VALUE | st.fixed_dictionaries({"text": VALUE, "image": VALUE}))
    if draw(st.booleans()):
        content = {"posts": [content, {"text": "Paris"}]}
    path = draw(st.sampled_from(("/v1/tag", "/v1/explain", "/v1/tag/stream")))
    kind = "application/x-ndjson" if path.endswith("stream") else JSON
    return path, {"Content-Type": kind}, edited(json.dumps(content).encode(), draw(EDITS))


@st.composite
def forms(draw: st.DrawFn) -> Request:
    """A multipart form, often with broken frames."""
    names = st.sampled_from(("text", "image", "posts", "words", "deadline_ms", "x", ""))
    values = PICTURE | st.sampled_from(
        (b"Paris in May", b'[{"text":"a","image":"image"}]', b"", b"[[0,5]]")
    )
    files = st.sampled_from((b"", b'; filename="a.png"', b'; filename="../../etc/passwd"'))
    body = b"".join(
        b'--b0undary\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), file, value)
        for name, file, value in draw(
            st.lists(st.tuples(names, files, values), min_size=1, max_size=3)
        )
    ) + draw(st.sampled_from((b"--b0undary--\r\n", b"", b"--b0undary")))
    path = draw(st.sampled_from(("/v1/tag", "/v1/explain")))
    return path, {"Content-Type": FORM}, edited(body, draw(EDITS | st.just([])))


def good_form(picture: bytes) -> Request:
    """A right form around a picture that is not."""
    part = b'--b0undary\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"text", b"Paris in May") + part % (b'image"; filename="a', picture)
    return "/v1/tag", {"Content-Type": FORM}, body + b"--b0undary--\r\n"


@st.composite
def json_tensors(draw: st.DrawFn) -> Request:
    """An Open Inference request in JSON form, damaged in one place."""
    text: dict[str, Any] = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Paris"]}
    image = text | {"name": "image", "data": [draw(BASE64)]}
    keys = st.sampled_from(("name", "shape", "datatype", "data", "parameters"))
    draw(st.sampled_from((text, image)))[draw(keys)] = draw(VALUE)
    inputs = draw(st.sampled_from(([text], [text, image], [image])) | VALUE)
    return TENSORS, {"Content-Type": JSON}, json.dumps({"inputs": inputs}).encode()


@st.composite
def binary_tensors(draw: st.DrawFn) -> Request:
    """An Open Inference request in binary form, its header's length or its data damaged."""
    contents = {"text": b"Paris", "image": draw(PICTURE)}
    data = b"".join(struct.pack("<I", len(value)) + value for value in contents.values())
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES",
         "parameters": {"binary_data_size": 4 + len(value)}}
        for name, value in contents.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs}).encode()
    length = len(head) + draw(st.sampled_from((0, 0, 0, 1, -1, 10**6)))
    headers = {"Inference-Header-Content-Length": str(length)}
    body = head + edited(data, draw(EDITS | st.just([])))
    return TENSORS, headers | {"Content-Type": "application/octet-stream"}, body


REQUESTS = json_requests() | forms() | PICTURE.map(good_form) | json_tensors() | binary_tensors()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    """A client of the application itself, without a socket between."""
    app = create_app(engine, ServerSettings(warm_up=False))
    with TestClient(app, raise_server_exceptions=False) as connected:
        end = time.monotonic() + 30
        while not app.state.service.ready:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield connected


# Starlette's form parser leaves the temporary file of a broken form to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=200)
@given(request=REQUESTS)
def test_no_broken_body_is_answered_with_500(client: TestClient, request: Request) -> None:
    path, headers, body = request
    answer = client.post(path, content=body, headers=headers)
    event(f"status {answer.status_code}")
    assert answer.status_code in WANTED
    if not path.endswith("stream"):
        assert isinstance(answer.json(), dict)


def spans(results: list[Any]) -> list[Any]:
    """Entities and whether the picture was used; scores depend on batch mates."""
    return [
        ([(e["start"], e["end"], e["label"]) for e in result["entities"]], result["image_used"])
        for result in results
    ]


def test_answers_stay_right_while_the_bundles_files_are_replaced(
    tiny_plan: Path, tmp_path: Path, engine: Engine
) -> None:
    """By rename, as an update does it; pictures that nobody has seen before come afterwards."""
    plan = Path(shutil.copytree(tiny_plan, tmp_path / "copy.plan"))
    posts = [Post(f"Jordan {i} in Paris", saved(smooth(64 + i))) for i in range(4)]
    with (
        Engine.load(plan, provider="onnxruntime", threads=1) as copied,
        LiveServer(copied, ServerSettings(warm_up=False)) as server,
        Client(server.url) as http,
    ):
        for path in [path for path in plan.rglob("*") if path.is_file()]:
            rubbish = path.with_suffix(".new")
            rubbish.write_bytes(b"rubbish")
            rubbish.replace(path)
        answers = [result.to_dict() for result in http.tag_batch(posts)]
    expected = [result.to_dict() for result in engine.tag_batch(posts)]
    assert spans(answers) == spans(expected)
    assert all(result["image_used"] and result["entities"] for result in answers)


def test_answers_agree_with_the_description(engine: Engine) -> None:
    tool = Path(sys.executable).parent / "schemathesis"
    require("schemathesis", found=tool.exists(), reason="the package schemathesis")
    limits = RequestLimits(body_timeout_s=2.0)
    # What a schema cannot say: base64, spans within the text, JSON inside a form's field.
    excluded = "positive_data_acceptance"
    with LiveServer(engine, ServerSettings(warm_up=False, limits=limits)) as server:
        run = subprocess.run(
            [
                str(tool),
                "run",
                f"{server.url}/openapi.json",
                *("--max-examples", "4", "--seed", "1", "--request-timeout", "20"),
                *("--phases", "coverage,fuzzing", "--exclude-checks", excluded, "--no-color"),
                # It knows no serializer for JSON lines.
                *("--exclude-path", "/v1/tag/stream", "--generation-database", "none"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert run.returncode == 0, run.stdout[-5000:]
