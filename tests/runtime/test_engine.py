"""What the engine answers: entities, offsets, raw outputs; odd texts, words and pictures."""

import inspect
import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amlr.errors import InputError
from amlr.runtime import Engine, Post
from amlr.runtime.options import EngineOptions
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from drawings import animated, png_header, saved, smooth, turned
from engine_posts import PICTURES, TEXTS, assert_close, keys

SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_load_takes_every_option_with_its_default() -> None:
    taken = inspect.signature(Engine.load).parameters
    options = {option.name: option.default for option in fields(EngineOptions)}
    assert {name: taken[name].default for name in options} == options
    assert taken.keys() - options.keys() == {"path", "manifest_sha256"}


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
    honest = engine._pipeline._prepare

    def watched(chunk: Any, *rest: Any) -> Any:
        sizes.append(len(chunk))
        assert len(chunk) == 1 or sum(len(post.text) for post in chunk) <= 150
        return honest(chunk, *rest)

    monkeypatch.setattr("amlr.runtime.pipeline.CHUNK_POSTS", 4)
    monkeypatch.setattr("amlr.runtime.pipeline.CHUNK_CHARS", 150)
    monkeypatch.setattr(engine._pipeline, "_prepare", watched)
    assert [keys(result.entities) for result in engine.tag_batch(posts)] == expected
    assert sum(sizes) == len(posts)
    assert max(sizes) <= 4
