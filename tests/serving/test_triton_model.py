"""The models for Triton's python backend, run with a double of the module that it provides."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from amlr.runtime import Engine
from amlr.runtime.options import EngineOptions
from amlr.runtime.results import Post, Result
from amlr.serving.triton.model import TritonPythonModel, choose_device
from amlr.serving.triton.repository import EngineParameters, write_repository
from doubles.triton_backend import (
    TritonError,
    TritonModelException,
    arguments,
    backend_double,
    request,
)
from drawings import saved, smooth
from live_server import LiveServer

PICTURE, OTHER = saved(smooth()), saved(smooth(40, 50))
LONG = "Jordan son in New York at the apple street " * 12


@pytest.fixture(scope="module")
def repository(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # `auto` times the providers, and a tiny model's fastest is another each time.
    folder = write_repository(tiny_plan, tmp_path_factory.mktemp("triton") / "triton")
    config = folder / "models" / "amlr" / "config.pbtxt"
    text, value = config.read_text(), '"provider" value { string_value: "%s"'
    assert value % "auto" in text
    config.write_text(text.replace(value % "auto", value % "onnxruntime"))
    return folder


@pytest.fixture
def pb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = backend_double()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def model(repository: Path, pb: Any) -> Iterator[TritonPythonModel]:
    loaded = TritonPythonModel()
    loaded.initialize(arguments(repository / "models" / "amlr"))
    yield loaded
    loaded.finalize()


def results(response: Any) -> list[bytes]:
    assert not response.has_error(), response.error().message()
    (tensor,) = response.output_tensors()
    return list(tensor.as_numpy().reshape(-1))


def test_answers_are_the_engines(model: TritonPythonModel, engine: Engine, pb: Any) -> None:
    batch = [
        request(["Jordan in Paris", ""], [PICTURE, b""]),
        request(["New York"]),
        request([LONG, "apple"], [b"broken", OTHER]),
    ]
    first, second, third = model.execute(batch)
    posts = [Post("Jordan in Paris", PICTURE), Post(""), Post("New York")]
    posts += [Post(LONG, b"broken"), Post("apple", OTHER)]
    found = [json.loads(r) for response in (first, second, third) for r in results(response)]
    assert found == [result.to_dict() for result in engine.tag_batch(posts)]
    assert any(answer["entities"] for answer in found)
    assert found[3]["warnings"][0]["code"] == "image_unreadable"
    assert first.output_tensors()[0].as_numpy().shape == (2, 1)
    assert json.loads(third.parameters()) == {
        "tier": "onnxruntime-cpu/fp32",
        "posts": 2,
        "images_used": 1,
        "entities": sum(len(answer["entities"]) for answer in found[3:]),
        "warnings": 1,
        "errors": 0,
        "certified": 0,
    }
    assert any("onnxruntime-cpu" in line for line in pb.Logger.lines)


def test_answers_are_those_of_amlr_serve(model: TritonPythonModel, server: LiveServer) -> None:
    texts = ["Jordan in Paris", "é ünï", ""]
    tensor = {"name": "text", "shape": [3, 1], "datatype": "BYTES", "data": texts}
    with server.client() as client:
        answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    (response,) = model.execute([request(texts)])
    assert [r.decode() for r in results(response)] == answer["outputs"][0]["data"]


def test_a_loaded_model_has_run_full_batches(model: TritonPythonModel) -> None:
    golden = {post.image for post in model._engine.bundle.golden} - {None}
    assert model._engine.image_cache.misses == len(golden) > 0


def test_bad_requests_fail_alone(model: TritonPythonModel, engine: Engine) -> None:
    bad, cancelled, uneven, good = model.execute(
        [
            request([b"\xff\xfe"]),
            request(["Paris"], cancelled=True),
            request(["Paris", "Rome"], [PICTURE]),
            request(["Jordan in Paris"]),
        ]
    )
    assert (bad.error().code(), uneven.error().code()) == (TritonError.INVALID_ARG,) * 2
    assert "UTF-8" in bad.error().message()
    assert cancelled.error().code() == TritonError.CANCELLED
    (found,) = results(good)
    assert json.loads(found) == engine.tag("Jordan in Paris").to_dict()
    (tooth,) = results(model.execute([request(["a" * 100_001])])[0])
    assert json.loads(tooth)["error"]["code"]


class Broken:
    """Fails on any batch that holds a certain post."""

    provider = precision = "double"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def tag_batch(self, posts: Sequence[Post]) -> list[Result]:
        self.calls.append(len(posts))
        if any(post.text == "boom" for post in posts):
            raise RuntimeError("out of memory at 0x7f")
        return [Result(provider="double", precision="fp32") for _ in posts]

    def close(self) -> None:
        pass


def test_a_failing_engine_fails_one_request(model: TritonPythonModel, pb: Any) -> None:
    model._engine.close()
    broken: Any = Broken()
    model._engine = broken
    a, boom, c = model.execute([request(["a"]), request(["boom"]), request(["c", "d"])])
    assert len(results(a)) == 1
    assert len(results(c)) == 2
    assert boom.error().code() == TritonError.INTERNAL
    assert "0x7f" not in boom.error().message()
    assert "0x7f" in "".join(pb.Logger.lines)
    assert broken.calls == [4, 1, 1, 2]
    assert model.execute([]) == []


def test_older_servers_get_no_parameters(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backend_double(old=True)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = TritonPythonModel()
    model.initialize(arguments(repository / "models" / "amlr"))
    (response,) = model.execute([request(["Paris"])])
    assert len(results(response)) == 1
    assert response.parameters() == "null"
    model.finalize()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("manifest_sha256", "0" * 64, "was pinned"),
        ("threads", "many", "of type int"),
        ("image_cache_mb", "-1", "from 0 on"),
        ("image", "sometimes", "when-needed"),
        ("colour", "red", "unknown colour"),
        ("provider", "abacus", "abacus"),
        ("bundle", "gone.plan", "no bundle at"),
    ],
)
def test_wrong_configurations_are_refused(
    repository: Path, pb: Any, name: str, value: str, message: str
) -> None:
    args = arguments(repository / "models" / "amlr")
    config = json.loads(args["model_config"])
    config["parameters"][name] = {"string_value": value}
    with pytest.raises(TritonModelException, match=message):
        TritonPythonModel().initialize(args | {"model_config": json.dumps(config)})


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(
            provider="onnxruntime",
            precision="fp32",
            threads=3,
            image_cache_mb=7.5,
            cache_dir=Path("/cache"),
            max_changed=0.01,
            check="text",
            answer_cache=9,
            image="when-needed",
            trust_file_times=True,
        ),
    ],
)
def test_every_option_of_the_engine_comes_back(options: EngineOptions) -> None:
    parameters = EngineParameters(bundle="a.plan", manifest_sha256="0" * 64, options=options)
    texts = parameters.to_strings()
    config = {"parameters": {name: {"string_value": text} for name, text in texts.items()}}
    assert EngineParameters.from_config(config) == parameters


def test_a_configuration_of_an_older_version_is_read() -> None:
    texts = {"bundle": "amlr.plan", "manifest_sha256": "0" * 64, "provider": "auto"}
    texts |= {"precision": "auto", "threads": "auto", "image_cache_mb": "256"}
    texts |= {"answer_cache": "0", "image": "always"}
    config = {"parameters": {name: {"string_value": text} for name, text in texts.items()}}
    assert EngineParameters.from_config(config) == EngineParameters(manifest_sha256="0" * 64)


def test_finalize_closes_the_engine(repository: Path, pb: Any) -> None:
    model = TritonPythonModel()
    model.initialize(arguments(repository / "models" / "amlr"))
    model.finalize()
    (response,) = model.execute([request(["Paris"])])
    assert "closed" in response.error().message()


def test_an_instance_sees_its_own_gpu() -> None:
    gpu = {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    for before, after in (({}, "1"), ({"CUDA_VISIBLE_DEVICES": "4,6"}, "6")):
        environ: dict[str, str] = dict(before)
        choose_device(gpu, environ)
        assert environ == {"CUDA_VISIBLE_DEVICES": after}
    untouched: dict[str, str] = {}
    choose_device(gpu | {"model_instance_kind": "CPU"}, untouched)
    assert untouched == {}
