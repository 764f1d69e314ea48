import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amlr.errors import AmlrError, BackendUnavailableError, BundleError, InputError
from amlr.runtime import Engine, Entity, Post, Raw
from amlr.runtime.bundle import Bundle
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from drawings import animated, png_header, saved, smooth, turned

SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
PICTURES = [saved(smooth(40 + 9 * i, 50)) for i in range(3)]
TEXTS = [
    "Jordan in Paris",
    "the new york apple, at the st. Jordan's place in Paris, https://t.co/x and more words",
    "x",
    "👨‍👩‍👧 in New York 🇫🇷",
    " ".join(f"word{i} Paris" for i in range(60)),  # several windows
    "a-b-c-d-e-f-g-h",  # one word longer than the largest scale
]


@pytest.fixture(scope="module")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as loaded:
        yield loaded


def keys(entities: tuple[Entity, ...]) -> list[tuple[int, int, str]]:
    return [(e.start, e.end, e.label) for e in entities]


def assert_close(a: Raw, b: Raw, atol: float = 1e-5) -> None:
    np.testing.assert_array_equal(a.input_ids, b.input_ids)
    np.testing.assert_array_equal(a.token_offsets, b.token_offsets)
    np.testing.assert_array_equal(a.unit_starts, b.unit_starts)
    np.testing.assert_array_equal(a.unit_ends, b.unit_ends)
    np.testing.assert_allclose(a.unit_logits, b.unit_logits, atol=atol, rtol=0)
    np.testing.assert_allclose(a.emissions, b.emissions, atol=atol, rtol=0)


def test_tag(engine: Engine) -> None:
    text = "Jordan in Paris"
    result = engine.tag(text, PICTURES[0])
    assert result.entities
    assert result.image_used
    assert (result.provider, result.precision) == ("onnxruntime-cpu", "fp32")
    assert result.error is None
    assert result.warnings == ()
    ends = 0
    for entity in result.entities:
        assert text[entity.start : entity.end] == entity.text
        assert entity.start >= ends
        assert 0 < entity.score <= 1
        ends = entity.end
    values = result.to_dict()
    assert set(values["entities"][0]) == {"start", "end", "text", "label", "score"}
    assert not engine.tag(text).image_used


@example("e\u0301 👨‍👩‍👧 مرحبا من \x00 \u200b B\u0338", False)
@example("\ud800 Paris \udfff", True)
@given(st.text(st.characters(exclude_categories=()), max_size=300), st.booleans())
@SHARED
def test_offsets_of_any_text(engine: Engine, text: str, has_image: bool) -> None:
    result = engine.tag(text, PICTURES[0] if has_image else None)
    for entity in result.entities:
        assert text[entity.start : entity.end] == entity.text != ""


@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXTS) - 1), st.sampled_from([None, 0, 1, 2])),
        min_size=1,
        max_size=40,
    )
)
@settings(SHARED, max_examples=15)
def test_batch_mates_order_and_padding_change_nothing(
    engine: Engine, chosen: list[tuple[int, int | None]]
) -> None:
    posts = [Post(TEXTS[t], None if p is None else PICTURES[p]) for t, p in chosen]
    for post, raw, result in zip(posts, engine.raw(posts), engine.tag_batch(posts), strict=True):
        (alone,) = engine.raw([post])
        assert_close(raw, alone)
        assert keys(result.entities) == keys(engine.tag(post.text, post.image).entities)
        assert result.image_used == raw.image_used == (post.image is not None)


@pytest.mark.parametrize("form", ["packed", "padded", "text padded only"])
def test_all_forms_of_the_graphs_agree(engine: Engine, form: str) -> None:
    bundle = engine.bundle
    variant = bundle.manifest.variants["fp32"]
    if form == "text padded only":
        graphs = {name: file for name, file in variant.graphs.items() if name != "text_packed"}
        variant = replace(variant, graphs=graphs)
    provider = OnnxRuntimeProvider(
        bundle, variant, ProviderOptions(threads=1), packed=form != "padded"
    )
    posts = [
        Post(text, picture) for text, picture in itertools.product(TEXTS, [None, *PICTURES[:2]])
    ]
    with Engine(bundle, provider) as other:
        for every in (False, True):
            for a, b in zip(engine.raw(posts, every), other.raw(posts, every), strict=True):
                assert_close(a, b)


def test_words_given_by_the_caller(engine: Engine) -> None:
    text = "New York, in Paris"
    words = [(0, 8), (13, 18)]
    (raw,) = engine.raw([Post(text, words=words)])
    assert {tuple(o) for o in raw.token_offsets[1:-1].tolist()} <= {
        (start, end) for start in range(19) for end in range(19)
    }
    allowed_starts, allowed_ends = {0, 13}, {8, 18}
    for entity in engine.tag(text, words=words).entities:
        assert entity.start in allowed_starts
        assert entity.end in allowed_ends


def test_raw_is_documented_shape_by_shape(engine: Engine) -> None:
    text = "Jordan in Paris"
    aligned, every = (engine.raw([Post(text)], all_units=flag)[0] for flag in (False, True))
    steps = len(aligned.input_ids)
    scales = engine.manifest.scales
    assert aligned.token_offsets.shape == (steps, 2)
    assert aligned.emissions.shape == (steps, len(aligned.tags))
    assert len(every.unit_starts) == sum(steps - k + 1 for k in range(1, min(scales, steps) + 1))
    np.testing.assert_allclose(every.unit_probs.sum(1), 1, atol=1e-6)
    assert every.unit_probs.dtype == np.float32
    assert every.classes[0] == "none"
    unit = dict(
        zip(zip(every.unit_starts, every.unit_ends, strict=True), every.unit_probs, strict=True)
    )
    for start, end, row in zip(
        aligned.unit_starts, aligned.unit_ends, aligned.unit_probs, strict=True
    ):
        np.testing.assert_allclose(unit[start, end], row, atol=1e-6)
    assert set(aligned.to_dict()) >= {"input_ids", "unit_probs", "classes"}
    (nothing,) = engine.raw([Post("")])
    assert nothing.unit_probs.shape == (0, len(nothing.classes))


def test_long_texts_are_read_to_the_end(engine: Engine) -> None:
    text = "x y z " * 400 + "Jordan in Paris"
    (raw,) = engine.raw([Post(text)])
    assert raw.token_offsets[-2].tolist() == [len(text) - 5, len(text)]
    assert len(raw.input_ids) > 1000
    assert engine.tag(text).entities[-1].end > len(text) - 30
    (every,) = engine.raw([Post(text)], all_units=True)
    assert len(every.unit_starts) > len(raw.unit_starts)


def test_hundred_kilobytes_and_one_more(engine: Engine) -> None:
    assert engine.tag("ab " * 33_333).error is None
    assert engine.tag("a" * 100_000).error is None
    with pytest.raises(InputError, match="at most 100000"):
        engine.tag("a" * 100_001)


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x01", "\u200b\u200d"])
def test_texts_without_words(engine: Engine, text: str) -> None:
    result = engine.tag(text, PICTURES[0])
    assert result.entities == ()
    assert not result.image_used
    assert result.error is None


BAD_PICTURES = {
    "absent": ("/no/such/picture.jpg", "image_missing"),
    "text": (b"hello", "image_unreadable"),
    "empty": (b"", "image_unreadable"),
    "bomb": (png_header(60_000, 60_000), "image_too_large"),
    "cut": (PICTURES[0][:300], "image_unreadable"),
    "type": (3.5, "image_invalid"),
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_bad_picture_is_a_warning(engine: Engine, case: str) -> None:
    source, code = BAD_PICTURES[case]
    result = engine.tag("Jordan in Paris", source)  # type: ignore[arg-type]
    assert not result.image_used
    assert [warning["code"] for warning in result.warnings] == [code]
    assert keys(result.entities) == keys(engine.tag("Jordan in Paris").entities)


def test_odd_but_good_pictures(engine: Engine) -> None:
    for content in (
        animated("GIF"),
        turned(6),
        saved(smooth(1, 1)),
        saved(smooth().convert("CMYK"), "TIFF"),
    ):
        assert engine.tag("Jordan", content).image_used
    assert engine.tag("Jordan", smooth()).image_used


def test_one_bad_post_fails_alone(engine: Engine) -> None:
    good = Post("Jordan in Paris", PICTURES[1])
    posts: list[Any] = [
        good,
        Post(None),  # type: ignore[arg-type]
        Post("x" * 200_000),
        Post("Paris", words=[(0, 99)]),
        "no post",
        Post("Paris", b"broken"),
        good,
    ]
    results = engine.tag_batch(posts)
    codes = [result.error and result.error["code"] for result in results]
    assert codes == [
        None,
        "text_invalid",
        "text_too_long",
        "words_invalid",
        "post_invalid",
        None,
        None,
    ]
    assert results[5].warnings[0]["code"] == "image_unreadable"
    assert keys(results[0].entities) == keys(results[-1].entities)
    for post in posts[1:4]:
        with pytest.raises(InputError):
            engine.tag(post.text, words=post.words)
    with pytest.raises(InputError):
        engine.raw([good, posts[1]])
    assert engine.tag_batch([]) == []


def test_chunks_bound_posts_and_characters(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [Post(text) for text in TEXTS * 3]
    expected = [keys(result.entities) for result in engine.tag_batch(posts)]
    sizes: list[int] = []
    honest = engine._pipeline._score_chunk

    def watched(chunk: Any, every: bool) -> Any:
        sizes.append(len(chunk))
        assert len(chunk) == 1 or sum(len(post.text) for post in chunk) <= 150
        return honest(chunk, every)

    monkeypatch.setattr("amlr.runtime.pipeline.CHUNK_POSTS", 4)
    monkeypatch.setattr("amlr.runtime.pipeline.CHUNK_CHARS", 150)
    monkeypatch.setattr(engine._pipeline, "_score_chunk", watched)
    assert [keys(result.entities) for result in engine.tag_batch(posts)] == expected
    assert sum(sizes) == len(posts)
    assert max(sizes) <= 4


class Counting:
    """Counts what reaches a provider."""

    def __init__(self, inner: OnnxRuntimeProvider) -> None:
        self.inner, self.name, self.precision = inner, inner.name, inner.precision
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


def test_a_graph_that_refuses_empty_inputs_gets_dummies(
    engine: Engine, counted: tuple[Engine, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, provider = counted
    honest, empties = provider.inner._run, []

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
    with pytest.raises(BackendUnavailableError, match="onnxruntime-gpu"):
        Engine.load(tiny_plan, provider="onnxruntime-cuda")
