"""Decoding on the device: the CUDA kernels, through the host shim, on the engine's outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.export.samples import sample_posts
from amlr.runtime import Engine
from amlr.runtime.batching import Batch
from amlr.runtime.decode import decode_posts
from amlr.runtime.image import load_pixels
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.tensorrt import TensorRtProvider, open_family
from amlr.runtime.providers.tensorrt_decode import can_decode
from amlr.runtime.windows import merge_windows, window_units
from doubles.bundle import double_bundle, double_tools
from doubles.device import DoubleDevice
from requirements import require
from shims.host_build import HostBuilder
from shims.shim_device import ShimDevice

POSTS = [post for post in sample_posts(90, images=3) if len(post.text) < 150]


@pytest.fixture(scope="module")
def double(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    require("compiler")
    folder = tmp_path_factory.mktemp("decode")
    (folder / "shim").mkdir()
    bundle = double_bundle(tiny_plan, folder / "d.plan")
    device = DoubleDevice(kernels=ShimDevice(HostBuilder(folder / "shim")))
    tools, _ = double_tools(device)
    variant = bundle.manifest.variants["fp32"]
    provider = open_family("tensorrt", bundle, variant, ProviderOptions(), tools)
    yield bundle, device, provider
    provider.close()
    assert device.live_allocations == 0


@pytest.mark.parametrize("kind", ["joint", "segmental"])
def test_entities_equal_the_host_decoder_and_no_logit_comes_back(double: Any, kind: str) -> None:
    bundle, device, provider = double
    assert isinstance(provider, TensorRtProvider)
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
    assert can_decode(batch, settings)
    for _ in range(3):  # first run, captured run, replay
        found = provider.decode(batch, images, settings)
    scores = batch.split(provider.score(batch, images))
    merged = [
        merge_windows(encoded[i], [table], [score], scales=manifest.scales, every=False)
        for i, table, score in zip(keep, tables, scores, strict=True)
    ]
    expected = decode_posts(
        merged, settings, bundle.decoder, labels=manifest.labels, tags=manifest.tags
    )
    for i, own, entities in zip(keep, found, expected, strict=True):
        spans = encoded[i].word_spans_n2
        rows = own.entities_e3
        actual = [(int(spans[a, 0]), int(spans[b, 1]), manifest.labels[c]) for a, b, c in rows]
        assert actual == [(e.start, e.end, e.label) for e in entities]
        np.testing.assert_allclose(own.scores_e, [e.score for e in entities], rtol=0, atol=2e-5)
        assert own.best >= 0
    assert sum(len(own.entities_e3) for own in found) > 30
    assert device.kernels.launches > 0


def test_only_whole_posts_and_unit_decoders_are_decoded_here(double: Any) -> None:
    bundle, _, _ = double
    manifest = bundle.manifest
    (encoded,) = bundle.encoder.encode([("word " * 80, None)])
    assert len(encoded.windows) > 1
    tables = [window_units(window, manifest.scales, every=False) for window in encoded.windows]
    batch = Batch(encoded.windows, tables, scales=manifest.scales, pad_id=0)
    assert not can_decode(batch, manifest.decoder)
    first = Batch(encoded.windows[:1], tables[:1], scales=manifest.scales, pad_id=0)
    assert can_decode(first, manifest.decoder)
    assert not can_decode(first, replace(manifest.decoder, kind="linear-chain"))


def test_the_engine_itself_is_unchanged_by_it(double: Any, tiny_plan: Path) -> None:
    bundle, _, provider = double
    with Engine.load(tiny_plan, provider="onnxruntime") as expected:
        engine = Engine(bundle, provider)
        for a, b in zip(engine.tag_batch(POSTS), expected.tag_batch(POSTS), strict=True):
            assert [e.to_dict()["label"] for e in a.entities] == [
                e.to_dict()["label"] for e in b.entities
            ]
