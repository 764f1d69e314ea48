"""The written repository on a real Triton server, through Triton's own clients."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amlr.errors import BackendUnavailableError
from amlr.runtime import Engine
from amlr.runtime.results import Post
from drawings import saved, smooth
from triton_client import TaggingClient
from triton_process import Installation, TritonServer

PICTURE = saved(smooth())


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, triton: TritonServer) -> Iterator[TaggingClient]:
    connected = TaggingClient(request.param, getattr(triton, request.param))
    yield connected
    connected.close()


def expected(engine: Engine, posts: list[Post]) -> list[dict[str, Any]]:
    return [result.to_dict() for result in engine.tag_batch(posts)]


def test_answers_are_the_engines(client: TaggingClient, engine: Engine) -> None:
    texts = ["Jordan in Paris", "", "New York apple", "é 中 \U0001f600 at home"]
    images = [PICTURE, PICTURE, b"broken", None]
    posts = [Post(text, image) for text, image in zip(texts, images, strict=True)]
    found = client.tag(texts, images)
    assert found == expected(engine, posts)
    assert found[0]["image_used"]
    assert found[2]["warnings"][0]["code"] == "image_unreadable"
    assert client.tag(["Jordan in Paris"]) == expected(engine, [Post("Jordan in Paris")])


def test_long_texts(client: TaggingClient, engine: Engine) -> None:
    text = ("Jordan in Paris at the apple " * 4000)[:100_000]
    (found,) = client.tag([text])
    assert found == expected(engine, [Post(text)])[0]
    assert found["entities"]
    (found,) = client.tag([text + "!"])
    assert found["error"]
    assert found == expected(engine, [Post(text + "!")])[0]


def test_bad_request_is_an_error_of_its_own(client: TaggingClient) -> None:
    with pytest.raises(Exception, match="UTF-8"):
        client.infer([b"\xff\xfe"])
    with pytest.raises(Exception, match="batch"):
        client.infer(["a"] * 1000)
    assert client.tag(["Jordan"])


def test_a_warmed_model_is_ready(client: TaggingClient) -> None:
    # It runs full batches of golden posts while it loads; Triton does not count them.
    assert client.client.is_model_ready("amlr")


def test_concurrent_requests_share_batches(triton: TritonServer, engine: Engine) -> None:
    """32 clients at once, bad requests among them: nobody gets another's answer or error."""
    texts = [f"Jordan {i} in Paris" for i in range(32)]
    wanted = expected(engine, [Post(text) for text in texts])
    count = triton.metric("nv_inference_count")
    runs = triton.metric("nv_inference_exec_count")
    wrong: list[Any] = []
    start = threading.Barrier(32)

    def ask(number: int) -> None:
        protocol = ("http", "grpc")[number % 2]
        client = TaggingClient(protocol, getattr(triton, protocol))
        start.wait()
        for turn in range(4):
            try:
                if number % 8 == 7 and turn == 1:
                    with pytest.raises(Exception, match="UTF-8"):
                        client.infer([b"\xff"])
                elif client.tag([texts[number]]) != [wanted[number]]:
                    wrong.append(number)
            except BaseException as error:
                wrong.append(error)
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    count = triton.metric("nv_inference_count") - count
    runs = triton.metric("nv_inference_exec_count") - runs
    assert count >= 124
    assert runs <= count / 2


def test_unload_and_stop(installation: Installation, repository: Path) -> None:
    with TritonServer(
        installation, repository / "models", ("--model-control-mode=explicit", "--load-model=amlr")
    ) as server:
        client = TaggingClient("http", server.http)
        assert client.tag(["Paris"])
        client.client.unload_model("amlr")
        assert not client.client.is_model_ready("amlr")
        client.client.load_model("amlr")
        assert client.tag(["Paris"])
        client.close()
        assert server.stop() == 0


def test_changed_bundle_does_not_load(
    installation: Installation, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "models", tmp_path / "models")
    manifest = tmp_path / "models" / "amlr" / "1" / "amlr.plan" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with (
        pytest.raises(BackendUnavailableError, match="was pinned"),
        TritonServer(installation, tmp_path / "models"),
    ):
        pass
