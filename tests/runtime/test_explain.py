"""Attention maps: the right unit, the right grid, the same whatever serves the engine."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amlr.errors import InputError
from amlr.runtime import Engine, Post
from amlr.runtime.explain import Explainer, _grid

TEXT = "Kevin Love at Quicken Loans Arena in New York"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((90, 70)).convert("RGB")


@pytest.mark.parametrize(
    ("regions", "expected"), [(49, (7, 0)), (197, (14, 1)), (4, (2, 0)), (1, (0, 0)), (6, (0, 0))]
)
def test_grid(regions: int, expected: tuple[int, int]) -> None:
    assert _grid(regions) == expected


def test_result_is_the_engines_and_maps_sum_to_one(tiny_plan: Path, picture: Image.Image) -> None:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as engine:
        explainer = Explainer(engine)
        first = explainer.explain(Post(TEXT, picture))
        second = explainer.explain(Post(TEXT, picture))
        assert first.result == engine.tag(TEXT, picture)
        assert first.without_image == engine.tag(TEXT)
    assert (first.picture_cached, second.picture_cached) == (False, True)
    assert len(first.attention) == len(first.result.entities)
    maps = [grid for grid in first.attention if grid is not None]
    assert maps
    for grid in maps:
        assert grid.shape == (2, 2)
        assert grid.sum() == pytest.approx(1, abs=1e-5)
    assert set(first.seconds) == {"picture", "tag", "attention"}


def test_maps_do_not_depend_on_the_provider(tiny_plan: Path, picture: Image.Image) -> None:
    pytest.importorskip("openvino")
    maps = []
    for provider in ("onnxruntime", "openvino"):
        with Engine.load(tiny_plan, provider=provider, precision="exact", threads=1) as engine:
            maps.append(Explainer(engine).explain(Post(TEXT, picture)).attention)
    for one, other in zip(*maps, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_long_texts_find_the_entitys_window(tiny_plan: Path, picture: Image.Image) -> None:
    text = " ".join([TEXT] * 20)
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as engine:
        explanation = Explainer(engine).explain(Post(text, picture))
    found = [grid is not None for grid in explanation.attention]
    assert found[0]
    assert found[-1] or found[-2]


def test_without_a_picture_there_is_nothing_to_compare(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as engine:
        explainer = Explainer(engine)
        for image in (None, b"no picture"):
            explanation = explainer.explain(Post(TEXT, image))
            assert explanation.without_image == explanation.result
            assert not any(grid is not None for grid in explanation.attention)
        with pytest.raises(InputError):
            explainer.explain(Post("a", None, [(1, 0)]))
