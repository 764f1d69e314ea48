"""What the engine does with its provider, its caches, other threads, a fork, its end."""

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import AmlrError, BackendUnavailableError, BundleError, InputError
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import Bundle
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from engine_posts import PICTURES, TEXTS, assert_close, keys


class Counting:
    """Counts what reaches a provider."""

    def __init__(self, inner: OnnxRuntimeProvider) -> None:
        self.inner, self.name, self.precision = inner, inner.name, inner.precision
        self.batch_sizes = inner.batch_sizes
        self.pictures = 0

    def encode_images(self, pixels_bchw: Any) -> list[Any]:
        self.pictures += len(pixels_bchw)
        return self.inner.encode_images(pixels_bchw)

    def score(self, batch: Any, images: Any) -> Any:
        return self.inner.score(batch, images)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def counted(tiny_plan: Path) -> tuple[Engine, Counting]:
    bundle = Bundle.open(tiny_plan)
    options = ProviderOptions(threads=1)
    provider = Counting(OnnxRuntimeProvider(bundle, bundle.manifest.variants["fp32"], options))
    return Engine(bundle, provider, threads=2), provider


def test_text_alone_runs_no_image_graph(counted: tuple[Engine, Counting]) -> None:
    engine, provider = counted
    engine.tag_batch([Post(text) for text in TEXTS])
    assert provider.pictures == 0
    assert "image" not in provider.inner.loaded_graphs


@pytest.mark.parametrize("is_older_export", [False, True])
def test_a_graph_that_refuses_empty_inputs_is_asked_once(
    engine: Engine,
    counted: tuple[Engine, Counting],
    monkeypatch: pytest.MonkeyPatch,
    is_older_export: bool,
) -> None:
    other, provider = counted
    honest, empties = provider.inner._run, []
    if is_older_export:  # without the graph for posts without a picture: dummy rows
        provider.inner._closed = False

    def picky(graph: str, feed: dict[str, Any], options: Any = None) -> Any:
        if not all(np.size(array) for array in feed.values()):
            empties.append(graph)
            raise RuntimeError("cannot reshape nothing")
        return honest(graph, feed, options)

    monkeypatch.setattr(provider.inner, "_run", picky)
    posts = [Post(text) for text in TEXTS]
    for _ in range(2):
        for a, b in zip(engine.raw(posts), other.raw(posts), strict=True):
            assert_close(a, b)
    assert empties == ["fusion_packed"]
    assert ("fusion_closed" in provider.inner.loaded_graphs) is not is_older_export


def test_a_repeated_picture_is_encoded_once(
    counted: tuple[Engine, Counting], tmp_path: Path
) -> None:
    engine, provider = counted
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES[0])
    posts = [Post(text, source) for text in TEXTS for source in (PICTURES[0], path, str(path))]
    threads = [threading.Thread(target=engine.tag_batch, args=(posts,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert provider.pictures == 1
    assert engine.image_cache.entries == 1
    engine.tag("Paris", b"broken")
    engine.tag("Paris", PICTURES[1])
    assert provider.pictures == 2


def test_load_with_text_check_only_leaves_the_image_graph(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, provider="onnxruntime-cpu", check="text") as engine:
        engine.tag("Paris")
        provider = engine._provider
        assert isinstance(provider, OnnxRuntimeProvider)
        assert provider.loaded_graphs == ("fusion_packed", "text_packed")


def test_threads_get_what_one_thread_gets(engine: Engine) -> None:
    posts = [Post(text, picture) for text in TEXTS for picture in (None, *PICTURES)]
    expected = [keys(result.entities) for result in engine.tag_batch(posts)]
    failures: list[object] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(posts)).tolist()
        for index, result in zip(order, engine.tag_batch([posts[i] for i in order]), strict=True):
            if keys(result.entities) != expected[index]:
                failures.append((seed, index))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_decoder_settings_apply_at_the_next_call(engine: Engine) -> None:
    before = engine.decoder
    try:
        engine.decoder = replace(before, bias=1e6)
        assert engine.tag("Jordan in Paris").entities == ()
        engine.decoder = replace(before, kind="linear-chain")
        engine.tag("Jordan in Paris")
    finally:
        engine.decoder = before


def test_a_closed_engine_says_so(tiny_plan: Path) -> None:
    engine = Engine.load(tiny_plan, provider="onnxruntime-cpu")
    engine.close()
    engine.close()
    for call in (lambda: engine.tag("x"), lambda: engine.tag_batch([]), lambda: engine.raw([])):
        with pytest.raises(AmlrError, match="closed"):
            call()


def _use_in_child(engine: Engine, answers: Any) -> None:
    try:
        engine.tag("Paris")
        answers.put("worked")
    except AmlrError as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 and later warn about any fork
def test_a_fork_is_refused_and_named(engine: Engine) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_use_in_child, args=(engine, answers))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "after the fork" in answers.get()


def test_nan_scores_fail_their_post_alone(
    counted: tuple[Engine, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, provider = counted
    honest = provider.inner.score

    def spoilt(batch: Any, images: Any) -> Any:
        scores = honest(batch, images)
        scores.unit_logits_mc[batch.window_m == 0] = np.nan
        return scores

    monkeypatch.setattr(provider.inner, "score", spoilt)
    results = engine.tag_batch([Post("Paris"), Post("Jordan in Paris")])
    assert [result.error is None for result in results] == [False, True]


def test_options_are_checked(tiny_plan: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"threads": 0}, InputError, "threads"),
        ({"check": "some"}, InputError, "check"),
        ({"provider": "cpux"}, InputError, "onnxruntime"),
        ({"precision": "int2"}, BundleError, "int2"),
    ]
    for options, kind, match in wrong:
        with pytest.raises(kind, match=match):
            Engine.load(tiny_plan, **options)


def test_a_provider_by_name_never_falls_back(tiny_plan: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver|onnxruntime-gpu"):
        Engine.load(tiny_plan, provider="onnxruntime-cuda")
