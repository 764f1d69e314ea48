"""Escalation gives float32's entities, and says which stage gave them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amlr.errors import BundleError, InputError
from amlr.export.samples import sample_posts
from amlr.runtime import Engine, Entity, Post, Result
from amlr.runtime.certified import Certified
from amlr.runtime.decode import Decoder
from amlr.runtime.radii import Radii
from tiny_ladder import tiny_ladder, write_posts


def keys(entities: Sequence[Sequence[Entity]]) -> list[list[tuple[int, int, str]]]:
    return [[(e.start, e.end, e.label) for e in of_post] for of_post in entities]


def spans(results: Sequence[Result]) -> list[list[tuple[int, int, str]]]:
    return keys([result.entities for result in results])


@pytest.fixture(scope="module")
def climbing(ladder_plan: Path) -> Engine:
    return Engine.load(ladder_plan, provider="onnxruntime", precision="escalate", threads=1)


def stage_of(engine: Engine) -> Certified:
    assert isinstance(engine.strategy, Certified)
    return engine.strategy


@pytest.mark.parametrize("kind", ["joint", "segmental", "linear-chain"])
def test_entities_are_those_of_float32(ladder_plan: Path, climbing: Engine, kind: str) -> None:
    posts = sample_posts(40, seed=11)
    with Engine.load(ladder_plan, provider="onnxruntime", precision="exact") as exact:
        settings = replace(exact.decoder, kind=kind)
        exact.decoder = climbing.decoder = settings
        assert spans(climbing.tag_batch(posts)) == spans(exact.tag_batch(posts))


def test_every_post_is_counted_once_and_names_its_stage(climbing: Engine) -> None:
    before = sum(getattr(stage_of(climbing).stats, stage) for stage in ("low", "picture", "exact"))
    results = climbing.tag_batch(sample_posts(20, seed=12))
    after = sum(getattr(stage_of(climbing).stats, stage) for stage in ("low", "picture", "exact"))
    assert after - before == 20
    assert {result.precision for result in results} <= {"int8", "int8+fp32", "fp32"}


def test_impossible_radii_send_everything_up(climbing: Engine) -> None:
    posts = [Post("Jordan in Paris")]
    before = stage_of(climbing).radii

    def scaled(factor: float) -> dict[str, Radii]:
        return {
            kind: replace(radii, units=factor * radii.units, tokens=factor * radii.tokens)
            for kind, radii in before.items()
        }

    try:
        stage_of(climbing).radii = scaled(1e6)
        (result,) = climbing.tag_batch(posts)
        assert result.precision == "fp32"
        assert result.certified is None
        stage_of(climbing).radii = scaled(0.0)
        (result,) = climbing.tag_batch(posts)
        assert result.precision == "int8"
        assert result.certified is True
    finally:
        stage_of(climbing).radii = before


def stages(plan: Path, posts: Sequence[Post]) -> tuple[int, int, int]:
    """Posts answered by each stage, with float32's entities."""
    with (
        Engine.load(plan, provider="onnxruntime", precision="escalate", threads=1) as engine,
        Engine.load(plan, provider="onnxruntime", precision="exact", threads=1) as exact,
    ):
        assert spans(engine.tag_batch(posts)) == spans(exact.tag_batch(posts))
        says_so = "not calibrated" in engine.choice.reason
        assert says_so == (not {"text", "picture"} <= set(stage_of(engine).radii))
        stats = stage_of(engine).stats
        return stats.low, stats.picture, stats.exact


POSTS = sample_posts(60, images=6, seed=21)
WITH_PICTURE = sum(post.image is not None for post in POSTS)


def test_posts_of_both_kinds_are_certified_where_both_were_calibrated_on(ladder_plan: Path) -> None:
    low, picture, _ = stages(ladder_plan, [post for post in POSTS if post.image is not None])
    assert low + picture > 0
    low, picture, _ = stages(ladder_plan, [post for post in POSTS if post.image is None])
    assert low > 0 == picture


def test_calibration_without_pictures_certifies_no_post_with_one(
    tiny_plan: Path, tmp_path: Path
) -> None:
    calib = write_posts(tmp_path, images=0, count=60)
    plan = tiny_ladder(tiny_plan, tmp_path / "a.plan", calib=calib, precisions=("int8",))
    low, picture, exact = stages(plan, POSTS)
    assert 0 < low <= len(POSTS) - WITH_PICTURE
    assert (picture, low + exact) == (0, len(POSTS))


def test_invented_posts_and_old_records_certify_nothing(
    tiny_plan: Path, ladder_plan: Path, tmp_path: Path
) -> None:
    invented = tiny_ladder(tiny_plan, tmp_path / "a.plan", precisions=("int8",))
    assert stages(invented, POSTS) == (0, 0, len(POSTS))
    # As records were before they told what the calibration was.
    old = Path(shutil.copytree(ladder_plan, tmp_path / "old.plan"))
    manifest = json.loads((old / "manifest.json").read_text())
    nothing = {"units": 0.0, "tokens": 0.0, "posts": 96}
    for variant in manifest["variants"].values():
        if variant["parity"].pop("calibration", None):
            variant["parity"]["radii"] = {"all": nothing, "picture": nothing}
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert stages(old, POSTS) == (0, 0, len(POSTS))


def test_picture_that_cannot_be_used_leaves_a_post_without_one(
    climbing: Engine,
) -> None:
    (result,) = climbing.tag_batch([Post("Maria Lopez at Paris", b"no picture")])
    assert not result.image_used
    assert result.warnings
    assert result.error is None


def test_bad_posts_fail_alone(climbing: Engine) -> None:
    results = climbing.tag_batch([Post("Paris"), Post(7), Post("")])  # type: ignore[arg-type]
    assert [result.error is not None for result in results] == [False, True, False]
    with pytest.raises(InputError):
        climbing.tag(7)  # type: ignore[arg-type]


def test_bundle_without_radii_is_refused(tiny_plan: Path) -> None:
    with pytest.raises(BundleError, match="export it with"):
        Engine.load(tiny_plan, provider="onnxruntime", precision="escalate")


def test_no_change_within_the_radii_escapes_the_certificate(ladder_plan: Path) -> None:
    radii = Radii(units=0.02, tokens=0.02, posts=1, steps=512, blocks=frozenset({0}))
    with Engine.load(ladder_plan, provider="onnxruntime", precision="exact") as engine:
        decoder = Decoder.of(engine.bundle)
        scored = [
            post.scores for post in engine.pipeline.score(sample_posts(24, seed=5)) if post.scores
        ]
        cleared = decoder.certify(scored, [radii] * len(scored))
        expected = keys(decoder.entities(scored))
        rng = np.random.default_rng(0)
        for _ in range(5):
            moved = [
                replace(
                    post,
                    # Half on either side: their difference moves by at most the radius.
                    unit_logits_uc=post.unit_logits_uc
                    + rng.choice([-0.01, 0.01], post.unit_logits_uc.shape).astype(np.float32),
                    emissions_ty=post.emissions_ty
                    + rng.choice([-0.02, 0.02], post.emissions_ty.shape).astype(np.float32),
                )
                for post in scored
            ]
            same = [a == b for a, b in zip(expected, keys(decoder.entities(moved)), strict=True)]
            assert all(np.array(same)[cleared])
    assert cleared.sum() > 0
