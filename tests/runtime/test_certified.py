"""`auto` takes a low tier where its answers are certified and it is faster; a sentinel watches."""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import InputError, ParityError
from amlr.export.samples import sample_posts
from amlr.runtime import Engine, Post, Result, pipeline, tier_choice, tier_memory
from amlr.runtime.certified import Certified, CertifiedStats
from amlr.runtime.decode import Decoder
from amlr.runtime.manifest import Manifest, Variant
from amlr.runtime.providers import registry
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.sentinel import Sentinel
from amlr.runtime.tier_timing import TierTime

RADII = {"units": 1e-3, "tokens": 1e-3, "posts": 200, "steps": 60, "blocks": [0]}
POSTS = sample_posts(40, images=4, seed=31)
PHOTO = next(post.image for post in POSTS if post.image)


class Low(OnnxRuntimeProvider):
    """Float32 under the name of another library, with errors as a low precision has them."""

    name = "openvino"
    error = 0.0

    def score(self, batch: Any, images: Any) -> Any:
        scores = super().score(batch, images)
        rng = np.random.default_rng(len(scores.unit_logits_mc))
        noise = self.error * rng.choice([-1.0, 1.0], scores.unit_logits_mc.shape)
        return replace(scores, unit_logits_mc=scores.unit_logits_mc + noise.astype(np.float32))


def open_low(bundle: Any, variant: Any, options: Any) -> OnnxRuntimeProvider:
    # In float32 it is onnxruntime; only what is called bf16 has errors.
    if variant.precision == "fp32":
        return OnnxRuntimeProvider(bundle, variant, options)
    return Low(bundle, variant, options)


@pytest.fixture(autouse=True)
def low_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PROVIDERS, "openvino", f"{__name__}:open_low")
    monkeypatch.setitem(registry.GROUPS, "auto", ("openvino", "onnxruntime-cpu"))
    monkeypatch.setattr(tier_memory, "_remembered", {})
    monkeypatch.setattr(Low, "error", 0.0)


def with_bf16(plan: Path, out: Path, **record: Any) -> Path:
    """A bundle whose bf16 variant runs the float32 graphs and has a record."""
    copy = Path(shutil.copytree(plan, out))
    manifest = json.loads((copy / "manifest.json").read_text())
    parity = {
        "entities": 90,
        "changed_entities": 1,
        "calibration": {"given": True, "posts": 200, "with_picture": 100, "photos": 100},
        "radii": dict.fromkeys(("text", "picture", "picture-only"), RADII),
        "certificates": {
            "text": {"posts": 300, "certified": 0.9},
            "picture": {"posts": 100, "certified": 0.7},
        },
    }
    bf16 = {"precision": "bf16", "provider": "openvino", "parity": parity | record}
    manifest["variants"] = {"bf16": manifest["variants"]["fp32"] | bf16} | manifest["variants"]
    (copy / "manifest.json").write_text(Manifest.from_json(json.dumps(manifest)).to_json())
    return copy


@pytest.fixture
def plan(tiny_plan: Path, tmp_path: Path) -> Path:
    return with_bf16(tiny_plan, tmp_path / "low.plan")


def same_times(tier: Any, ms: float) -> TierTime:
    return TierTime(
        provider=tier.provider,
        precision=tier.variant.precision,
        alone_ms=ms,
        batch_ms=ms,
        picture_ms=ms,
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each precision takes."""
    ms = {"fp32": 10.0, "bf16": 5.0}

    def time_tiers(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        return [same_times(tier, ms[tier.variant.precision]) for tier, _, _ in contestants]

    monkeypatch.setattr(tier_choice, "time_tiers", time_tiers)
    return ms


def spans(results: Sequence[Result]) -> list[list[tuple[int, int, str]]]:
    return [[(e.start, e.end, e.label) for e in result.entities] for result in results]


def stats_of(engine: Engine) -> CertifiedStats:
    assert isinstance(engine.strategy, Certified)
    return engine.strategy.stats


def test_auto_takes_a_certified_tier_that_is_faster(plan: Path, times: dict[str, float]) -> None:
    with Engine.load(plan, threads=1) as engine, Engine.load(plan, precision="exact") as exact:
        assert engine.precision == engine.choice.precision == "bf16+fp32"
        assert "bf16 on openvino first" in engine.choice.reason
        assert "for the 15 % whose answers are not certified" in engine.choice.reason
        # 5 ms, and 10 more for those that climb.
        assert engine.choice.times[-1].alone_ms == pytest.approx(6.5)
        # Both encode pictures with the same session.
        assert engine.choice.times[-1].picture_ms == 10.0
        assert stats_of(engine) == CertifiedStats()
        results = engine.tag_batch(POSTS)
        assert spans(results) == spans(exact.tag_batch(POSTS))
        assert {r.certified for r in results if r.precision == "bf16"} == {True}
        assert {r.provider for r in results if r.certified} == {"openvino"}
        assert {r.certified for r in results if r.precision == "fp32"} <= {None}
        assert stats_of(engine).low > len(POSTS) / 2


def test_auto_stays_in_float32_where_that_is_as_fast(plan: Path, times: dict[str, float]) -> None:
    times["bf16"] = 9.0
    with Engine.load(plan, threads=1) as engine:
        assert engine.precision == "fp32"
        assert {r.certified for r in engine.tag_batch(POSTS)} == {None}
        assert "not clearly faster here" in engine.skipped[-1].reason
    with Engine.load(plan, threads=1, precision="escalate") as engine:
        assert engine.precision == "bf16+fp32"


def test_kinds_of_posts_that_certificates_slow_down_go_to_float32(
    tiny_plan: Path, tmp_path: Path, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {
        "text": {"posts": 300, "certified": 0.2},
        "picture": {"posts": 100, "certified": 0.9},
    }
    plan = with_bf16(tiny_plan, tmp_path / "low.plan", certificates=records)
    for _ in range(2):  # the second is remembered
        with Engine.load(plan, threads=1, cache_dir=tmp_path, sentinel=0.0) as engine:
            assert engine.choice.kinds == ("picture",)
            assert "for the 10 % whose answers are not certified" in engine.choice.reason
            assert (
                "posts without a picture are computed in float32, as that is faster for them here"
                in engine.choice.reason
            )
            text, pictured = engine.tag_batch([Post("Jordan"), Post("Jordan", PHOTO)])
            assert (text.certified, pictured.certified) == (None, True)
        monkeypatch.setattr(tier_memory, "_remembered", {})
    records["picture"]["certified"] = 0.4
    plan = with_bf16(tiny_plan, tmp_path / "lower.plan", certificates=records)
    with Engine.load(plan, threads=1) as engine:
        assert (engine.precision, engine.choice.kinds) == ("fp32", ())
    # By name every kind that can be certified is.
    with Engine.load(plan, threads=1, precision="bf16+fp32", sentinel=0.0) as engine:
        assert engine.choice.kinds == ("text", "picture")
        assert engine.tag("Jordan").certified


def test_new_pictures_that_low_precision_slows_down_go_to_float32(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_bf16(tiny_plan, tmp_path / "low.plan")
    # Each tier encodes its own pictures.
    monkeypatch.setattr(Variant, "has_image_of", lambda *_: False)

    def time_tiers(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        ms = {"fp32": 10.0, "bf16": 5.0}
        pictures = {"fp32": 10.0, "bf16": 20.0}
        return [
            replace(same_times(tier, ms[tier.name]), picture_ms=pictures[tier.name])
            for tier, _, _ in contestants
        ]

    monkeypatch.setattr(tier_choice, "time_tiers", time_tiers)
    with Engine.load(plan, threads=1, sentinel=0.0) as engine:
        assert engine.choice.kinds == ("text",)
        assert (
            "posts with a picture are computed in float32, as that is faster for them here"
            in engine.choice.reason
        )
        text, pictured = engine.tag_batch([Post("Jordan"), Post("Jordan", PHOTO)])
        assert (text.certified, pictured.certified) == (True, None)
        # Statistics are of the cache that is used.
        assert engine.image_cache.misses == 1


def test_calls_of_few_posts_go_where_they_are_faster(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_tiers(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        return [
            replace(same_times(tier, 10.0), batch_ms={"fp32": 10.0, "bf16": 5.0}[tier.name])
            for tier, _, _ in contestants
        ]

    monkeypatch.setattr(tier_choice, "time_tiers", time_tiers)
    for _ in range(2):  # the second is remembered
        with Engine.load(plan, threads=1, cache_dir=tmp_path, sentinel=0.0) as engine:
            assert engine.precision == "bf16+fp32"
            assert "calls of fewer than 8 posts in float32" in engine.choice.reason
            text = Post("Jordan in Paris")
            assert {r.precision for r in engine.tag_batch([text] * 7)} == {"fp32"}
            assert {r.precision for r in engine.tag_batch([text] * 8)} == {"bf16"}
        monkeypatch.setattr(tier_memory, "_remembered", {})


@pytest.mark.parametrize(
    ("record", "options", "reason"),
    [
        ({"calibration": {"given": False}}, {}, "not calibrated on enough real posts"),
        ({"radii": {}}, {}, "not calibrated on enough real posts"),
        # As exports before this rule wrote them.
        ({"radii": {"text": {"units": 0.1, "tokens": 0.1, "posts": 99}}}, {}, "not calibrated"),
        ({"when_needed": {}}, {"image": "when-needed"}, "takes float32 alone"),
    ],
)
def test_auto_certifies_nothing_without_radii_to_lean_on(
    tiny_plan: Path,
    tmp_path: Path,
    times: dict[str, float],
    record: dict[str, Any],
    options: dict[str, Any],
    reason: str,
) -> None:
    plan = with_bf16(tiny_plan, tmp_path / "low.plan", **record)
    manifest = json.loads((plan / "manifest.json").read_text())
    manifest["variants"]["fp32"]["parity"]["when_needed"] = {"margin": 1.0}
    (plan / "manifest.json").write_text(Manifest.from_json(json.dumps(manifest)).to_json())
    with Engine.load(plan, threads=1, **options) as engine:
        assert engine.precision == "fp32"
        assert reason in {s.precision: s.reason for s in engine.skipped}["bf16"]


def test_int8_is_taken_by_name_only(
    tiny_plan: Path, tmp_path: Path, times: dict[str, float]
) -> None:
    plan = with_bf16(tiny_plan, tmp_path / "low.plan")
    text = (
        (plan / "manifest.json").read_text().replace('"precision": "bf16"', '"precision": "int8"')
    )
    (plan / "manifest.json").write_text(text)
    times["int8"] = 1.0
    with Engine.load(plan, threads=1) as engine:
        assert engine.precision == "fp32"
        assert "only by name" in {s.precision: s.reason for s in engine.skipped}["int8"]
    with Engine.load(plan, threads=1, precision="escalate") as engine:
        assert engine.precision == "int8+fp32"


def test_two_processes_choose_alike_and_float32_waits_for_the_first_climb(
    plan: Path, tmp_path: Path, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    Engine.load(plan, threads=1, cache_dir=tmp_path).close()
    times["bf16"] = 99.0
    monkeypatch.setattr(tier_memory, "_remembered", {})
    with Engine.load(plan, threads=1, cache_dir=tmp_path, sentinel=0.0) as engine:
        assert engine.precision == "bf16+fp32"
        assert "when timed before" in engine.choice.reason
        exact: Any = engine.pipeline.provider
        # Pictures are float32 in both tiers, and encoded once.
        assert set(exact.loaded_graphs) == {"image"}
        assert engine.tag("Jordan in Paris").certified
        assert set(exact.loaded_graphs) == {"image"}
        # Longer than any post of the calibration.
        assert engine.tag("Jordan in Paris " * 20).certified is None
        assert set(exact.loaded_graphs) > {"image"}
    monkeypatch.setattr(tier_memory, "_remembered", {})
    with Engine.load(plan, threads=1, cache_dir=tmp_path, sentinel=0.0) as engine:

        def fail(*_: Any, **__: Any) -> None:
            raise ParityError("off")

        monkeypatch.setattr("amlr.runtime.engine.check_golden", fail)
        for _ in range(2):  # it is checked before every use until it passes
            with pytest.raises(ParityError):
                engine.tag("Jordan in Paris " * 20)
        with pytest.raises(ParityError):
            engine.raw([Post("Jordan")])


@pytest.mark.parametrize(
    "text",
    ["Jordan in Paris " * 20, "Ιορδανία στο Παρίσι", "Jordan " * 600],
    ids=["longer", "another script", "windows"],
)
def test_posts_unlike_the_calibration_go_to_float32(
    plan: Path, times: dict[str, float], text: str
) -> None:
    with Engine.load(plan, threads=1) as engine:
        assert engine.tag(text).certified is None
        assert engine.tag("Jördan in Paris ☃ 🎉").certified is True


def scaled(engine: Engine, factor: float) -> None:
    assert isinstance(engine.strategy, Certified)
    engine.strategy.radii = {
        kind: replace(radii, units=factor * radii.units, tokens=factor * radii.tokens)
        for kind, radii in engine.strategy.radii.items()
    }


def test_the_certificate_is_live(
    plan: Path, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Low, "error", 0.2)
    with Engine.load(plan, threads=1, check="off", sentinel=0.0) as engine:
        expected = spans(Engine.load(plan, threads=1, precision="exact").tag_batch(POSTS))
        scaled(engine, 1e5)
        results = engine.tag_batch(POSTS)
        assert spans(results) == expected
        assert not any(result.certified for result in results if result.entities)
        scaled(engine, 1e-8)
        results = engine.tag_batch(POSTS)
        assert all(result.certified for result in results if result.precision == "bf16")
        assert spans(results) != expected


def test_the_sentinel_takes_a_tier_out_of_service(
    plan: Path,
    times: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Low, "error", 0.2)
    expected = spans(Engine.load(plan, threads=1, precision="exact").tag_batch(POSTS))
    with Engine.load(plan, threads=1, check="off", sentinel=1.0) as engine:
        scaled(engine, 1e-3)
        assert spans(engine.tag_batch(POSTS)) == expected
        stats = stats_of(engine)
        assert stats.checked > 0 < stats.beyond
        assert not stats.in_service
        assert "out of service" in caplog.text
        caplog.clear()
        monkeypatch.setattr(Low, "score", None)
        results = engine.tag_batch(POSTS)
        assert spans(results) == expected
        assert {result.precision for result in results} == {"fp32"}
        assert not caplog.text


def test_the_next_chunk_is_read_in_low_precision_while_one_climbs(
    plan: Path, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Low, "error", 0.2)
    monkeypatch.setattr(pipeline, "CHUNK_POSTS", 4)
    expected = spans(Engine.load(plan, threads=1, precision="exact").tag_batch(POSTS))
    threads: list[str] = []
    with Engine.load(plan, threads=1, check="off", sentinel=1.0) as engine:
        assert isinstance(engine.strategy, Certified)
        low_scores = engine.strategy._low_scores

        def watched(posts: Sequence[Post], decoder: Decoder) -> Any:
            threads.append(threading.current_thread().name)
            return low_scores(posts, decoder)

        monkeypatch.setattr(engine.strategy, "_low_scores", watched)
        engine.strategy.first.overlaps = True
        scaled(engine, 1e-3)
        assert spans(engine.tag_batch(POSTS)) == expected
        assert len(threads) == 10
        assert all(name.startswith("amlr-ahead") for name in threads)
        # It left service at the first chunk, when the second was read in low precision already.
        assert 0 < stats_of(engine).checked <= 4
        assert not stats_of(engine).in_service


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 1.0])
def test_the_sentinel_looks_at_its_share(share: float) -> None:
    sentinel = Sentinel(share)
    chosen = [
        row for start in range(0, 1000, 7) for row in sentinel.choose(range(start, start + 7))
    ]
    assert len(chosen) == pytest.approx(share * 1001, abs=1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(plan: Path, share: float) -> None:
    with pytest.raises(InputError, match="sentinel"):
        Engine.load(plan, sentinel=share)


def test_bad_posts_fail_alone(plan: Path, times: dict[str, float]) -> None:
    posts = [Post("Paris"), Post(7), Post(""), Post("Jordan", b"no picture")]  # type: ignore[arg-type]
    with Engine.load(plan, threads=1, sentinel=1.0) as engine:
        results = engine.tag_batch(posts)
        assert [result.error is not None for result in results] == [False, True, False, False]
        assert results[3].warnings
