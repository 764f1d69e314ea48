"""Every way the runtime saves work gives the plain eager model's numbers: one test a lever."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.export.eager import EagerProvider, load_reference
from amlr.export.graphs import build_graphs
from amlr.export.samples import sample_posts
from amlr.export.to_onnx import write_graphs
from amlr.runtime import Engine, Post, Raw
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.providers.openvino import OpenVinoProvider
from drawings import saved, smooth
from tiny_model import IMAGE_SIZE

TOLERANCE = 1e-5
OPTIONS = ProviderOptions(threads=1)
CLOSED = "fusion_closed"
Graphs = Callable[..., Variant]


@pytest.fixture(scope="module")
def bundle(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy, so that graphs of other exports can lie beside its own."""
    return Bundle.open(shutil.copytree(tiny_plan, tmp_path_factory.mktemp("levers") / "a.plan"))


@pytest.fixture(scope="module")
def eager(bundle: Bundle) -> Iterator[Engine]:
    """Padded batches, every unit, nothing folded, nothing cached: `AmlrModel` itself."""
    model = load_reference(bundle)
    with Engine(bundle, EagerProvider(model), image_cache_mb=0) as engine:
        yield engine


@pytest.fixture(scope="module")
def graphs(bundle: Bundle, eager: Engine) -> Graphs:
    """Variants of other exports of the same model."""
    made: dict[str, Variant] = {}

    def make(**options: bool) -> Variant:
        name = "-".join(f"{key}{value}" for key, value in sorted(options.items()))
        if name not in made:
            folder = bundle.path / "onnx" / name
            folder.mkdir()
            provider = eager.pipeline.provider
            assert isinstance(provider, EagerProvider)
            files = write_graphs(
                build_graphs(provider.model, image_size=IMAGE_SIZE, **options), folder
            )
            relative = {n: path.relative_to(bundle.path).as_posix() for n, path in files.items()}
            made[name] = Variant(precision="fp32", graphs=relative)
        return made[name]

    return make


class SplitInFloat(OpenVinoProvider):
    """The graphs cut in two as for bfloat16, both parts in float32."""

    def _check_arithmetic(self) -> None:
        pass

    def _compiled(self, model: Any, hint: str) -> Any:
        return super()._compiled(model, "f32")


def without(variant: Variant, *names: str) -> Variant:
    return replace(variant, graphs={n: f for n, f in variant.graphs.items() if n not in names})


def ort(bundle: Bundle, variant: Variant, **options: Any) -> OnnxRuntimeProvider:
    return OnnxRuntimeProvider(bundle, variant, OPTIONS, **options)


def closed_only(provider: OnnxRuntimeProvider) -> OnnxRuntimeProvider:
    """As int8 runs it: no input may be empty."""
    provider._allow_empty = False
    return provider


LEVERS: dict[str, Callable[[Bundle, Graphs], Any]] = {
    "packed text and fusion": lambda b, g: ort(b, b.manifest.variants["fp32"]),
    "padded batches sorted by length": lambda b, g: ort(
        b, b.manifest.variants["fp32"], packed=False
    ),
    "packed fusion behind padded text": lambda b, g: ort(
        b, without(b.manifest.variants["fp32"], "text_packed")
    ),
    "folded heads": lambda b, g: ort(b, g(fold=True)),
    "folded heads, padded": lambda b, g: ort(b, g(fold=True), packed=False),
    "plain heads": lambda b, g: ort(b, g(fold=False)),
    "plain heads, padded": lambda b, g: ort(b, g(fold=False), packed=False),
    "centred regions, folded": lambda b, g: ort(b, g(fold=True, centre=True)),
    "centred regions, plain": lambda b, g: ort(b, g(fold=False, centre=True)),
    "closed form": lambda b, g: closed_only(ort(b, b.manifest.variants["fp32"])),
    "dummy attention of older bundles": lambda b, g: closed_only(
        ort(b, without(b.manifest.variants["fp32"], CLOSED))
    ),
    "bucketed shapes": lambda b, g: OpenVinoProvider(b, b.manifest.variants["fp32"], OPTIONS),
    "bucketed shapes of older bundles": lambda b, g: OpenVinoProvider(
        b, without(b.manifest.variants["fp32"], CLOSED), OPTIONS
    ),
    "float32 tail of a low-precision body": lambda b, g: SplitInFloat(
        b,
        replace(
            b.manifest.variants["fp32"],
            compute=dict.fromkeys(("fusion_packed", CLOSED), "bf16"),
        ),
        OPTIONS,
    ),
    "float32 tail of a low-precision body, padded": lambda b, g: SplitInFloat(
        b,
        replace(
            without(b.manifest.variants["fp32"], "text_packed", "fusion_packed", CLOSED),
            compute={"fusion": "bf16"},
        ),
        OPTIONS,
    ),
}

PICTURES = [saved(smooth(40 + 9 * i, 50)) for i in range(3)]
POSTS = [
    *sample_posts(12, seed=7),
    Post("x", PICTURES[0]),
    Post("a-b-c-d-e-f-g-h", PICTURES[0]),  # one word longer than the largest scale: no unit
    Post("Jordan in Paris", PICTURES[1]),
    Post("Jordan in Paris", PICTURES[1]),
    Post(" ".join(f"word{i} Paris" for i in range(60)), PICTURES[2]),  # several windows
]


def error(one: Raw, other: Raw) -> float:
    """Largest difference; tokens and units must agree."""
    for name in ("input_ids", "unit_starts", "unit_ends"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.image_used == other.image_used
    return max(
        float(np.abs(getattr(one, name) - getattr(other, name)).max(initial=0))
        for name in ("unit_logits", "emissions")
    )


@pytest.fixture(scope="module")
def expected(eager: Engine) -> list[tuple[list[Post], list[Raw]]]:
    """Posts in one batch, without pictures, and alone, with eager's numbers."""
    groups = (POSTS, [Post(post.text) for post in POSTS], POSTS[:1], POSTS[-1:])
    return [(posts, eager.raw(posts)) for posts in groups]


@pytest.mark.parametrize("lever", LEVERS)
def test_lever_equals_plain_eager(
    lever: str, bundle: Bundle, graphs: Graphs, expected: list[tuple[list[Post], list[Raw]]]
) -> None:
    if "bucket" in lever or "tail" in lever:
        pytest.importorskip("openvino")
    with Engine(bundle, LEVERS[lever](bundle, graphs)) as engine:
        for posts, raws in expected:
            for one, other in zip(raws, engine.raw(posts), strict=True):
                assert error(one, other) < TOLERANCE


def test_cached_regions_equal_plain_eager(
    bundle: Bundle, expected: list[tuple[list[Post], list[Raw]]]
) -> None:
    with Engine(bundle, ort(bundle, bundle.manifest.variants["fp32"])) as engine:
        engine.raw(POSTS)
        before = engine.image_cache
        for one, other in zip(expected[0][1], engine.raw(POSTS), strict=True):
            assert error(one, other) < TOLERANCE
        assert engine.image_cache.misses == before.misses > 0
        assert engine.image_cache.hits > before.hits


@pytest.mark.parametrize("picture", [None, PICTURES[0]])
def test_aligned_units_equal_those_among_all(
    bundle: Bundle, eager: Engine, picture: bytes | None
) -> None:
    posts = [Post("Jordan in New York, Paris's apple", picture)]
    with Engine(bundle, ort(bundle, bundle.manifest.variants["fp32"])) as engine:
        (aligned,), (every,) = engine.raw(posts), eager.raw(posts, all_units=True)
    places = zip(every.unit_starts.tolist(), every.unit_ends.tolist(), strict=True)
    place = {unit: row for row, unit in enumerate(places)}
    units = zip(aligned.unit_starts.tolist(), aligned.unit_ends.tolist(), strict=True)
    rows = [place[unit] for unit in units]
    assert 0 < len(rows) < len(place)
    np.testing.assert_allclose(aligned.unit_logits, every.unit_logits[rows], atol=TOLERANCE)


def test_closed_form_runs_no_attention(bundle: Bundle) -> None:
    provider = closed_only(ort(bundle, bundle.manifest.variants["fp32"]))
    with Engine(bundle, provider) as engine:
        engine.raw([Post(post.text) for post in POSTS])
        assert provider.loaded_graphs == (CLOSED, "text_packed")
        engine.raw(POSTS[-1:])
        assert "fusion_packed" in provider.loaded_graphs


@pytest.mark.parametrize("provider", [OnnxRuntimeProvider, OpenVinoProvider])
def test_fusion_alone_is_what_scoring_does_after_the_text(
    bundle: Bundle, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if provider is OpenVinoProvider:
        pytest.importorskip("openvino")
    served = provider(bundle, bundle.manifest.variants["fp32"], OPTIONS)
    assert isinstance(served, ByGraphs)
    seen: list[Any] = []
    honest = served.fuse

    def watched(batch: Any, hidden_nd: Any, images: Any) -> Any:
        scores = honest(batch, hidden_nd, images)
        seen.append((batch, hidden_nd[: batch.step_offsets_b[-1]], images, scores))
        return scores

    monkeypatch.setattr(provider, "fuse", lambda self, *given: watched(*given))
    with Engine(bundle, provider(bundle, bundle.manifest.variants["fp32"], OPTIONS)) as engine:
        engine.raw(POSTS)
        for batch, hidden_nd, images, scores in seen:
            again = honest(batch, hidden_nd, images)
            np.testing.assert_allclose(again.unit_logits_mc, scores.unit_logits_mc, atol=1e-6)
            np.testing.assert_allclose(again.emissions_ny, scores.emissions_ny, atol=1e-6)
    assert seen
