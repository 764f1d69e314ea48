"""Typical sizes are met at load, within a budget, and leave no trace in the user's counters."""

from pathlib import Path

from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.certified import Certified, CertifiedStats
from amlr.runtime.pipeline import Pipeline
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.warmup import warm_up


def test_lengths_and_pictures_within_the_budget(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    variant = bundle.manifest.variants["fp32"]
    provider = OnnxRuntimeProvider(bundle, variant, ProviderOptions(threads=1))
    pipeline = Pipeline(bundle, provider, variant=variant, image_cache_bytes=10**6)
    assert warm_up(pipeline, pictures=False, seconds=0.0) == 0
    assert not provider.loaded_graphs
    assert warm_up(pipeline, pictures=False, seconds=60) == 8
    assert set(provider.loaded_graphs) == {"fusion_packed", "text_packed"}
    assert warm_up(pipeline, pictures=True, seconds=60) == 16
    assert set(provider.loaded_graphs) == {"fusion_packed", "image", "text_packed"}
    assert pipeline.images.stats().misses == 1


def test_nothing_of_it_is_left(tiny_plan: Path, ladder_plan: Path) -> None:
    with (
        Engine.load(tiny_plan, provider="onnxruntime", threads=1) as plain,
        Engine.load(
            ladder_plan, provider="onnxruntime", precision="escalate", threads=1
        ) as climbing,
    ):
        for engine in (plain, climbing):
            stats = engine.image_cache
            assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (0, 0, 0, 0)
        assert isinstance(climbing.strategy, Certified)
        assert climbing.strategy.stats == CertifiedStats()


def test_without_a_check_nothing_is_loaded(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, provider="onnxruntime", check="off") as engine:
        provider = engine.pipeline.provider
        assert isinstance(provider, OnnxRuntimeProvider)
        assert not provider.loaded_graphs
