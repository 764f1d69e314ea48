"""OpenVINO serves the same graphs: float32 is float32, sizes and threads change nothing."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amlr.export.samples import sample_posts
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.openvino import OpenVinoProvider, bucket

openvino = pytest.importorskip("openvino")
FUSION = ("text", "text_packed", "fusion", "fusion_packed", "fusion_closed")


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path) -> Bundle:
    return Bundle.open(tiny_plan)


@pytest.fixture(scope="module")
def exact(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(tiny_plan, provider="onnxruntime", precision="exact", threads=1) as engine:
        yield engine


def make_engine(bundle: Bundle, variant: Variant, cache_dir: Path | None = None) -> Engine:
    options = ProviderOptions(threads=1, cache_dir=cache_dir)
    return Engine(bundle, OpenVinoProvider(bundle, variant, options), variant=variant)


def largest_error(one: Engine, other: Engine, posts: list[Post]) -> float:
    return max(
        max(
            float(np.abs(a.unit_logits - b.unit_logits).max(initial=0)),
            float(np.abs(a.emissions - b.emissions).max(initial=0)),
        )
        for a, b in zip(one.raw(posts), other.raw(posts), strict=True)
    )


def bf16(variant: Variant, graphs: tuple[str, ...] = FUSION) -> Variant:
    return replace(variant, precision="bf16", compute=dict.fromkeys(graphs, "bf16"))


def test_float32_is_asked_for_and_given(bundle: Bundle, exact: Engine) -> None:
    posts = sample_posts(20)
    variant = bundle.manifest.variants["fp32"]
    provider = OpenVinoProvider(bundle, variant, ProviderOptions(threads=1))
    with Engine(bundle, provider, variant=variant) as engine:
        # bfloat16 would be off by a thousand times as much.
        assert largest_error(exact, engine, posts) < 1e-5
        assert {provider.arithmetic(name) for name in provider.loaded_graphs} == {"f32"}


def test_padded_graphs_agree_too(bundle: Bundle, exact: Engine) -> None:
    variant = bundle.manifest.variants["fp32"]
    padded = {n: f for n, f in variant.graphs.items() if "packed" not in n}
    with make_engine(bundle, replace(variant, graphs=padded)) as engine:
        assert largest_error(exact, engine, sample_posts(12)) < 1e-5


def test_bf16_keeps_heads_in_float32(bundle: Bundle, exact: Engine) -> None:
    variant = bf16(bundle.manifest.variants["fp32"])
    provider = OpenVinoProvider(bundle, variant, ProviderOptions(threads=1))
    if "BF16" not in provider._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bfloat16")
    with Engine(bundle, provider, variant=variant) as engine:
        posts = sample_posts(20)
        assert 1e-5 < largest_error(exact, engine, posts) < 0.1
        assert provider.arithmetic("text_packed") == "bf16"
        assert provider.arithmetic("fusion_packed") == "bf16"
        assert provider.arithmetic("fusion_packed.heads") == "f32"
        assert provider.arithmetic("image") == "f32"


def test_results_do_not_depend_on_mates(bundle: Bundle) -> None:
    posts = sample_posts(9, seed=3)
    with make_engine(bundle, bundle.manifest.variants["fp32"]) as engine:
        together = engine.raw(posts)
        for post, mine in zip(posts, together, strict=True):
            (alone,) = engine.raw([post])
            np.testing.assert_allclose(alone.unit_logits, mine.unit_logits, atol=1e-5)


def test_concurrent_calls_get_their_own_answers(bundle: Bundle) -> None:
    posts = [post for post in sample_posts(16, seed=2) if post.text]
    with make_engine(bundle, bundle.manifest.variants["fp32"]) as engine:
        expected = [engine.tag(post.text, post.image) for post in posts]
        found: dict[int, object] = {}

        def work(start: int) -> None:
            for place in range(start, len(posts), 4):
                found[place] = engine.tag(posts[place].text, posts[place].image)

        workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    spans = {
        place: [(e.start, e.end, e.label) for e in result.entities]  # type: ignore[attr-defined]
        for place, result in found.items()
    }
    assert spans == {
        place: [(e.start, e.end, e.label) for e in result.entities]
        for place, result in enumerate(expected)
    }


def test_compiled_graphs_are_kept_in_cache_dir(bundle: Bundle, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.path.rglob("*")}
    with make_engine(bundle, bundle.manifest.variants["fp32"], tmp_path) as engine:
        engine.tag("Jordan in Paris")
    assert list(tmp_path.glob("openvino-f32/*.blob"))
    assert {p: p.stat().st_mtime_ns for p in bundle.path.rglob("*")} == before


def test_one_cache_dir_serves_both_arithmetics(bundle: Bundle, tmp_path: Path) -> None:
    # The library takes the code of the one for that of the other, and then writes out of bounds.
    exact = bundle.manifest.variants["fp32"]
    variants = (exact, bf16(exact, graphs=("text_packed", *FUSION)))
    posts = sample_posts(8)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bfloat16")
    expected = []
    for variant in variants:
        with make_engine(bundle, variant) as engine:
            expected.append(engine.raw(posts))
    for _ in range(2):
        for variant, wanted in zip(variants, expected, strict=True):
            with make_engine(bundle, variant, tmp_path) as engine:
                for raw, each in zip(engine.raw(posts), wanted, strict=True):
                    np.testing.assert_array_equal(raw.unit_logits, each.unit_logits)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 500])
def test_buckets_hold_what_they_must(count: int) -> None:
    assert bucket(count) >= max(count, 1)
    assert bucket(count) % 8 == 0
    assert bucket(count) - count <= 8
