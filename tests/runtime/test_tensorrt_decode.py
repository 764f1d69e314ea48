"""Decoding on the device: the CUDA kernels, through the host shim, on the engine's outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import BackendUnavailableError
from amlr.export.samples import sample_posts
from amlr.runtime import Alternative, Engine
from amlr.runtime.batching import Batch, Scores
from amlr.runtime.certified import Certified
from amlr.runtime.decode import Decoder
from amlr.runtime.device.decoding import UnitDecoder
from amlr.runtime.device.provider import DeviceProvider
from amlr.runtime.device.tensorrt import open_family
from amlr.runtime.image import load_pixels
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.pipeline import Pipeline
from amlr.runtime.providers.base import Decoded, ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.radii import Radii
from amlr.runtime.results import Post, Result
from amlr.runtime.strategies import Answer
from amlr.runtime.windows import merge_windows, window_units
from doubles.bundle import double_bundle, double_tools
from doubles.device import DoubleDevice
from shims.host_build import HostBuilder
from shims.shim_device import ShimDevice

POSTS = [post for post in sample_posts(90, images=3) if len(post.text) < 150]


@pytest.fixture(scope="module")
def double(
    tiny_plan: Path, host_builder: HostBuilder, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    bundle = double_bundle(tiny_plan, tmp_path_factory.mktemp("decode") / "d.plan")
    device = DoubleDevice(kernels=ShimDevice(host_builder))
    tools, _ = double_tools(device)
    variant = bundle.manifest.variants["fp32"]
    provider = open_family("tensorrt", bundle, variant, ProviderOptions(), tools)
    yield bundle, device, provider
    provider.close()
    assert device.live_allocations == 0


@pytest.mark.parametrize("kind", ["joint", "segmental", "linear-chain"])
def test_entities_equal_the_host_decoder_and_no_logit_comes_back(double: Any, kind: str) -> None:
    bundle, device, provider = double
    assert isinstance(provider, DeviceProvider)
    manifest = bundle.manifest
    settings = replace(manifest.decoder, kind=kind)
    encoded = bundle.encoder.encode([(post.text, post.words) for post in POSTS])
    keep = [i for i, text in enumerate(encoded) if len(text.windows) == 1]
    windows = [encoded[i].windows[0] for i in keep]
    tables = [window_units(window, manifest.scales, every=False) for window in windows]
    pictures: dict[Any, Any] = {
        post.image: provider.encode_images(
            load_pixels(post.image, manifest.image, manifest.limits)[None]
        )[0]
        for post in POSTS
        if post.image is not None
    }
    images = [pictures.get(POSTS[i].image) for i in keep]
    batch = Batch(windows, tables, scales=manifest.scales, pad_id=manifest.token_ids.pad_id)
    assert provider.can_decode(settings)
    for _ in range(3):  # first run, captured run, replay
        found = provider.decode(batch, images, settings)
    scores = batch.split(provider.score(batch, images))
    merged = [
        merge_windows(encoded[i], [table], [score], scales=manifest.scales, every=False)
        for i, table, score in zip(keep, tables, scores, strict=True)
    ]
    expected = Decoder.of(bundle, settings).entities(merged)
    for i, own, entities in zip(keep, found, expected, strict=True):
        spans = encoded[i].word_spans_n2
        rows = own.entities_e3
        actual = [(int(spans[a, 0]), int(spans[b, 1]), manifest.labels[c]) for a, b, c in rows]
        assert actual == [(e.start, e.end, e.label) for e in entities]
        np.testing.assert_allclose(own.scores_e, [e.score for e in entities], rtol=0, atol=2e-5)
        assert own.best >= 0
    assert sum(len(own.entities_e3) for own in found) > 30
    assert device.kernels.launches > 0


def keys(result: Result | Alternative) -> list[tuple[int, int, str]]:
    return [(e.start, e.end, e.label) for e in result.entities]


def test_the_engine_decodes_on_the_device(
    double: Any, tiny_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits come back only for the windows of long texts; every answer is the same."""
    bundle, _, provider = double
    long = Post("Jordan in Paris at the apple " * 20)
    many = sample_posts(500, images=3)
    posts = [*(Post(post.text, post.image, post.words) for post in many), long, Post("")]
    asked: list[int] = []
    score = DeviceProvider.score

    def counted(self: DeviceProvider, batch: Batch, images: Any) -> Scores:
        asked.append(len(batch))
        return score(self, batch, images)

    monkeypatch.setattr(DeviceProvider, "score", counted)
    with Engine.load(tiny_plan, provider="onnxruntime") as expected:
        found, wanted = Engine(bundle, provider).tag_batch(posts), expected.tag_batch(posts)
    texts = bundle.encoder.encode([(post.text, post.words) for post in posts])
    assert sum(asked) == sum(len(t.windows) for t in texts if len(t.windows) > 1) > 0
    for a, b in zip(found, wanted, strict=True):
        assert keys(a) == keys(b)
        assert a.image_used == b.image_used
        np.testing.assert_allclose(
            [e.score for e in a.entities], [e.score for e in b.entities], rtol=0, atol=2e-5
        )
    assert sum(len(result.entities) for result in found) > 200


@pytest.mark.parametrize("kind", ["joint", "segmental", "linear-chain"])
def test_the_first_alternative_is_the_device_answer(double: Any, kind: Any) -> None:
    bundle, _, provider = double
    engine = Engine(bundle, provider)
    engine.decoder = replace(bundle.manifest.decoder, kind=kind)
    for post in POSTS[:8]:
        first, *others = engine.alternatives(post, 3)
        assert keys(first) == keys(engine.tag(post.text, post.image, post.words))
        assert [other.score for other in others] == sorted(
            (other.score for other in others), reverse=True
        )
        assert all(other.score <= first.score for other in others)


RADII = {
    kind: Radii(units=units, tokens=tokens, posts=200, steps=64, blocks=frozenset([0]))
    for kind, units, tokens in (("text", 0.005, 0.002), ("picture", 0.01, 0.001))
}


def _certified(bundle: Any, provider: Any, sentinel: float = 0.0) -> Certified:
    variant = bundle.manifest.variants["fp32"]
    exact = OnnxRuntimeProvider(bundle, variant, ProviderOptions(threads=1))
    pipelines = [Pipeline(bundle, each, variant=variant) for each in (exact, provider)]
    return Certified(*pipelines, RADII, sentinel=sentinel)


@pytest.mark.parametrize("kind", ["joint", "segmental", "linear-chain"])
def test_certificates_come_back_with_the_entities(
    double: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What the device certifies is what the host would, and no logit of such a post comes back."""
    bundle, device, provider = double
    settings = replace(bundle.manifest.decoder, kind=kind)
    decoder, strategy = Decoder.of(bundle, settings), _certified(bundle, provider)
    posts = [*sample_posts(200, images=3), Post("Jordan in Paris at the apple " * 20), Post("")]
    posts.append(Post("Иванов in Paris"))  # letters that the radii do not hold for
    asked: list[int] = []
    score, launches = DeviceProvider.score, device.kernels.launches

    def counted(self: DeviceProvider, batch: Batch, images: Any) -> Scores:
        asked.append(len(batch))
        return score(self, batch, images)

    monkeypatch.setattr(DeviceProvider, "score", counted)
    found = [answer for chunk in strategy.answers(posts, decoder) for answer in chunk]
    on_device, stats = sum(asked), strategy.stats
    monkeypatch.setattr(
        DeviceProvider, "can_decode", lambda self, settings, *, certifies=False: not certifies
    )
    strategy.reset()
    expected = [answer for chunk in strategy.answers(posts, decoder) for answer in chunk]
    assert [a.certified for a in found] == [b.certified for b in expected]
    for a, b in zip(found, expected, strict=True):
        assert _keys(a, decoder) == _keys(b, decoder)
    assert stats == strategy.stats
    assert 60 < stats.low < 190 < stats.low + stats.exact
    assert [answer.certified for answer in found[-3:]] == [None, None, None]
    texts = bundle.encoder.encode([(post.text, post.words) for post in posts])
    windows = sum(len(text.windows) for text in texts if len(text.windows) > 1)
    if kind == "linear-chain":
        assert on_device == sum(asked) - on_device
    else:
        assert on_device == windows
        assert device.kernels.launches > launches


def _keys(answer: Answer, decoder: Decoder) -> list[tuple[int, int, str]]:
    entities = answer.entities
    if entities is None:
        scored = answer.scored.decoded or answer.scored.scores
        entities = decoder.entities([scored])[0] if scored else ()
    return [(e.start, e.end, e.label) for e in entities]


def test_a_sentinel_asks_for_the_scores_of_what_the_device_certified(
    double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, provider = double
    strategy = _certified(bundle, provider, sentinel=0.5)
    posts, decoder = sample_posts(60, images=3), Decoder.of(bundle)
    answers = [answer for chunk in strategy.answers(posts, decoder) for answer in chunk]
    stats = strategy.stats
    assert stats.checked > 10
    assert (stats.changed, stats.beyond, stats.in_service) == (0, 0, True)
    assert {answer.certified for answer in answers} == {True, None}
    score = DeviceProvider.score

    def wrong(self: DeviceProvider, batch: Batch, images: Any) -> Scores:
        scores = score(self, batch, images)
        return replace(scores, emissions_ny=scores.emissions_ny + np.float32(0.02))

    # Errors beyond the radii are seen, although entities alone came back at first.
    monkeypatch.setattr(DeviceProvider, "score", wrong)
    list(strategy.answers(posts, decoder))
    assert strategy.stats.beyond > 0
    assert not strategy.stats.in_service


def test_runs_with_and_without_certificates_are_captured_apart(double: Any) -> None:
    bundle, _, provider = double
    settings, scales = bundle.manifest.decoder, bundle.manifest.scales
    (text,) = bundle.encoder.encode([("Jordan in Paris", None)])
    tables = [window_units(text.windows[0], scales, every=False)]
    batch = Batch(text.windows, tables, scales=scales, pad_id=bundle.manifest.token_ids.pad_id)
    radii = RADII["text"]
    nothing = replace(radii, units=0.0, tokens=0.0)
    everything = replace(radii, units=1e6)
    cases = [(None, None), ([None], False), ([nothing], True), ([everything], False)]
    for _ in range(3):  # radii go up with each run: a captured one serves any
        for of_batch, certified in cases:
            (decoded,) = provider.decode(batch, [None], settings, of_batch)
            assert decoded.certified is certified


def test_a_post_with_nan_fails_alone(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _, provider = double
    read = UnitDecoder.read

    def spoilt(self: UnitDecoder, *arguments: Any) -> list[Decoded]:
        first, *others = read(self, *arguments)
        return [replace(first, best=float("nan")), *others]

    monkeypatch.setattr(UnitDecoder, "read", spoilt)
    posts = [Post("Jordan in Paris"), Post("Jordan in Paris at home")]
    results = Engine(bundle, provider).tag_batch(posts)
    errors = [result.error for result in results]
    assert errors.count(None) == 1
    (error,) = (error for error in errors if error)
    assert "NaN" in error["message"]


def test_the_host_decodes_where_the_device_cannot(
    double: Any, tiny_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, provider = double
    settings = bundle.manifest.decoder

    def missing(self: DeviceProvider, settings: DecoderSettings) -> UnitDecoder:
        raise BackendUnavailableError("no kernel image fits")

    monkeypatch.setattr(DeviceProvider, "_make_decoder", missing)
    monkeypatch.setattr(provider, "_decoders", {})
    assert not provider.can_decode(settings)
    with Engine.load(tiny_plan, provider="onnxruntime") as expected:
        engine, post = Engine(bundle, provider), Post("Jordan in Paris")
        assert keys(engine.tag(post.text)) == keys(expected.tag(post.text))
        engine.decoder = replace(settings, kind="linear-chain")
        expected.decoder = engine.decoder
        assert keys(engine.tag(post.text)) == keys(expected.tag(post.text))
