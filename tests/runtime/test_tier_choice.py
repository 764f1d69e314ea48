"""Several tiers may serve: the fastest is taken, remembered and explained."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from amlr.errors import BundleError
from amlr.export.samples import sample_posts
from amlr.runtime import Engine, tier_choice, tier_memory
from amlr.runtime.bundle import Bundle
from amlr.runtime.cli import tag_command
from amlr.runtime.manifest import Manifest
from amlr.runtime.providers import registry
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.tier_timing import Contestant, TierTime, time_tiers
from amlr.runtime.tiers import Tier


class Named(OnnxRuntimeProvider):
    """onnxruntime under the name of another provider."""

    opened: ClassVar[list[str]] = []

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.name = name
        Named.opened.append(name)


def first(*arguments: Any) -> Named:
    return Named("openvino", *arguments)


def second(*arguments: Any) -> Named:
    return Named("onnxruntime-cpu", *arguments)


def broken(*arguments: Any) -> Named:
    raise RuntimeError("library gone")


def broken_in_float32(bundle: Any, variant: Any, options: Any) -> Named:
    if variant.precision == "fp32":
        raise RuntimeError("library gone")
    return first(bundle, variant, options)


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {"openvino": f"{__name__}:first", "onnxruntime-cpu": f"{__name__}:second"}
    monkeypatch.setattr(registry, "PROVIDERS", targets)
    monkeypatch.setitem(registry.GROUPS, "auto", tuple(targets))
    monkeypatch.setattr(tier_memory, "_remembered", {})
    Named.opened = []


def timings(monkeypatch: pytest.MonkeyPatch, **ms: float) -> list[str]:
    """Let tiers take the given times; returns which were timed."""
    timed: list[str] = []

    def time_tiers(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        timed.extend(tier.provider for tier, _, _ in contestants)
        return [
            TierTime(
                provider=tier.provider,
                precision=tier.variant.precision,
                alone_ms=alone_ms,
                batch_ms=alone_ms / 2,
                picture_ms=1.0,
            )
            for tier, _, _ in contestants
            for alone_ms in [ms[tier.provider.replace("-", "_")]]
        ]

    monkeypatch.setattr(tier_choice, "time_tiers", time_tiers)
    return timed


@pytest.mark.parametrize(
    ("ms", "expected"), [((9.0, 3.0), "onnxruntime-cpu"), ((3.0, 9.0), "openvino")]
)
def test_the_fastest_serves_and_says_why(
    tiny_plan: Path, monkeypatch: pytest.MonkeyPatch, ms: tuple[float, float], expected: str
) -> None:
    timings(monkeypatch, openvino=ms[0], onnxruntime_cpu=ms[1])
    with Engine.load(tiny_plan) as engine:
        assert engine.provider == engine.choice.provider == expected
        assert engine.tag("Paris").provider == expected
        assert engine.choice.reason == "fastest of 2 timed here"
        assert {time.provider for time in engine.choice.times} == {"openvino", "onnxruntime-cpu"}
        (other,) = engine.skipped
        assert other.provider != expected
        assert "9.00 ms a post alone" in other.reason
        # Golden pictures are nobody's.
        assert engine.image_cache.entries == engine.image_cache.misses == 0


def test_noise_does_not_decide(tiny_plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, openvino=3.0, onnxruntime_cpu=2.95)
    with Engine.load(tiny_plan) as engine:
        assert engine.provider == "openvino"


def test_one_post_a_batch_and_a_picture_count_alike() -> None:
    def tier_time(*ms: float) -> TierTime:
        alone_ms, batch_ms, picture_ms = ms
        return TierTime(
            provider="openvino",
            precision="fp32",
            alone_ms=alone_ms,
            batch_ms=batch_ms,
            picture_ms=picture_ms,
        )

    # Twice as long for a post alone, half as long in batches: a large picture hides neither.
    assert tier_time(20, 2, 300).ratio_to(tier_time(10, 4, 300)) == pytest.approx(1.0)
    assert tier_time(8, 1, 1).ratio_to(tier_time(1, 1, 1)) == pytest.approx(2.0)
    assert tier_time(4, 1, 0).ratio_to(tier_time(1, 1, 0)) == pytest.approx(2.0)


def test_a_choice_is_kept_in_cache_dir(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    Engine.load(tiny_plan, cache_dir=tmp_path).close()
    assert len(timed) == 2
    (file,) = tmp_path.glob("tier-*.json")
    for _ in range(2):
        # Another process on another day, when the other would win.
        monkeypatch.setattr(tier_memory, "_remembered", {})
        timings(monkeypatch, openvino=1.0, onnxruntime_cpu=3.0)
        Named.opened = []
        with Engine.load(tiny_plan, cache_dir=tmp_path) as engine:
            assert engine.provider == "onnxruntime-cpu"
            assert engine.choice.reason == "fastest of 2 when timed before"
            assert len(engine.choice.times) == 2
            assert [skipped.provider for skipped in engine.skipped] == ["openvino"]
        assert Named.opened == ["onnxruntime-cpu"]
    for content in ("{", "[]", json.dumps({"tier": ["x", "y"], "times": []})):
        monkeypatch.setattr(tier_memory, "_remembered", {})
        file.write_text(content)
        with Engine.load(tiny_plan, cache_dir=tmp_path) as engine:
            assert engine.provider == "openvino"


def test_other_questions_are_timed_anew(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    Engine.load(tiny_plan).close()
    Engine.load(tiny_plan).close()
    assert len(timed) == 2, "one process asks once"
    Engine.load(tiny_plan, threads=1).close()
    Engine.load(tiny_plan, check="text").close()
    assert len(timed) == 6
    monkeypatch.setattr(tier_memory, "cpu_model", lambda: "another machine")
    Engine.load(tiny_plan).close()
    assert len(timed) == 8


def test_what_served_before_and_is_gone_is_passed_over(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings(monkeypatch, openvino=1.0, onnxruntime_cpu=3.0)
    Engine.load(tiny_plan, cache_dir=tmp_path).close()
    monkeypatch.setitem(registry.PROVIDERS, "openvino", f"{__name__}:broken")
    with Engine.load(tiny_plan, cache_dir=tmp_path) as engine:
        assert engine.provider == "onnxruntime-cpu"
        assert engine.choice.reason == "the only one that opened"
        assert "library gone" in engine.skipped[0].reason


@pytest.fixture
def three_tiers(tiny_plan: Path, tmp_path: Path) -> Path:
    """Float32 and two variants on the same graphs; by the record int8 is faster than bf16."""
    copy = Path(shutil.copytree(tiny_plan, tmp_path / "three.plan"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for precision, ms in (("bf16", 5.0), ("int8", 4.0)):
        parity = {"changed_entities": 0, "entities": 90, "ms_per_post": ms}
        own = {"precision": precision, "parity": parity}
        manifest["variants"][precision] = manifest["variants"]["fp32"] | own
    (copy / "manifest.json").write_text(Manifest.from_json(json.dumps(manifest)).to_json())
    return copy


def by_precision(monkeypatch: pytest.MonkeyPatch, **ms: float) -> list[str]:
    """Let precisions take the given times; returns which were timed."""
    timed: list[str] = []

    def time_tiers(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        precisions = [tier.variant.precision for tier, _, _ in contestants]
        timed.extend(precisions)
        return [
            TierTime(
                provider=tier.provider,
                precision=precision,
                alone_ms=ms[precision],
                batch_ms=ms[precision],
                picture_ms=ms[precision],
            )
            for (tier, _, _), precision in zip(contestants, precisions, strict=True)
        ]

    monkeypatch.setattr(tier_choice, "time_tiers", time_tiers)
    return timed


def test_tiers_are_pruned_by_the_record_and_the_rest_is_timed(
    three_tiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"provider": "onnxruntime-cpu", "max_changed": 0.001}
    monkeypatch.setattr(tier_choice, "MOST_TIMED", 2)
    timed = by_precision(monkeypatch, fp32=3.0, int8=9.0, bf16=1.0)
    with Engine.load(three_tiers, **options) as engine:
        # By the record bf16 is slower than int8.
        assert timed == ["fp32", "int8"]
        assert engine.precision == "fp32"
        assert (
            "slower by the bundle's record"
            in {s.precision: s.reason for s in engine.skipped}["bf16"]
        )
    monkeypatch.setattr(tier_choice, "MOST_TIMED", 3)
    for reason in ("fastest of 3 timed here", "fastest of 3 when timed before"):
        with Engine.load(three_tiers, cache_dir=tmp_path, **options) as engine:
            assert (engine.precision, engine.choice.reason) == ("bf16", reason)
        monkeypatch.setattr(tier_memory, "_remembered", {})
    # Each is timed beside the best so far.
    assert timed == ["fp32", "int8", "fp32", "int8", "fp32", "bf16"]


def test_float32_is_timed_where_its_first_provider_is_gone(
    three_tiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PROVIDERS, "openvino", f"{__name__}:broken_in_float32")
    timings(monkeypatch, openvino=1.0, onnxruntime_cpu=3.0)
    with Engine.load(three_tiers, max_changed=0.001) as engine:
        assert ("onnxruntime-cpu", "fp32") in [
            (item.provider, item.precision) for item in engine.choice.times
        ]


def test_only_what_serves_is_warmed(tiny_plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[str] = []

    def watched(pipeline: Any, *, pictures: bool) -> int:
        warmed.append(pipeline.provider.name)
        return 0

    monkeypatch.setattr("amlr.runtime.engine.warm_up", watched)
    timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    with Engine.load(tiny_plan):
        assert Named.opened == ["openvino", "onnxruntime-cpu"]
        assert warmed == ["onnxruntime-cpu"]


def test_a_cache_dir_that_cannot_be_written_is_no_error(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    with Engine.load(tiny_plan, cache_dir=tmp_path / "file") as engine:
        assert engine.provider == "onnxruntime-cpu"


def test_tiers_are_timed_in_turns(tiny_plan: Path) -> None:
    order: list[str] = []

    def contestant(name: str) -> Contestant:
        variant = bundle.manifest.variants["fp32"]
        tier = Tier(provider=name, name="fp32", variant=variant)
        return Contestant(tier, lambda posts: order.append(name), None)

    bundle = Bundle.open(tiny_plan)
    names = ["first", "second"]
    times = time_tiers(list(map(contestant, names)), bundle, 0.0, pictures=True)
    # A post alone by each, then a batch by each, three times over.
    assert order == names * 2 * 3
    assert [item.provider for item in times] == names
    assert {item.picture_ms for item in times} == {0.0}


def test_real_times_are_measured(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, threads=1) as engine:
        assert len(engine.choice.times) == 2
        for item in engine.choice.times:
            assert min(item.alone_ms, item.batch_ms, item.picture_ms) > 0
    with Engine.load(tiny_plan, threads=1, check="text") as engine:
        assert {item.picture_ms for item in engine.choice.times} == {0.0}
        assert "image" not in engine.pipeline.provider.loaded_graphs  # type: ignore[attr-defined]


def test_damage_is_not_raced_away(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(self: Any, variant: Any) -> None:
        if Named.opened:
            raise BundleError("damaged")

    monkeypatch.setattr("amlr.runtime.bundle.Bundle.verify", verify)
    with pytest.raises(BundleError, match="damaged"):
        Engine.load(tiny_plan)


def test_escalation_climbs_to_the_fastest_float32(
    ladder_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    posts = sample_posts(12, seed=21)
    with (
        Engine.load(ladder_plan, precision="escalate") as climbing,
        Engine.load(ladder_plan, provider="onnxruntime-cpu", precision="exact") as exact,
    ):
        assert climbing.pipeline.provider.name == "onnxruntime-cpu"
        assert "float32 on onnxruntime-cpu" in climbing.choice.reason
        found, expected = (
            [[(e.start, e.end, e.label) for e in r.entities] for r in engine.tag_batch(posts)]
            for engine in (climbing, exact)
        )
        assert found == expected


def test_verbose_prints_the_choice(tiny_plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, openvino=9.0, onnxruntime_cpu=3.0)
    arguments = ["--engine", str(tiny_plan), "--text", "Paris", "--verbose"]
    result = CliRunner().invoke(tag_command, arguments)
    lines = result.stderr.splitlines()
    assert lines[0] == "tier: onnxruntime-cpu fp32 (fastest of 2 timed here)"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "timed",
        "timed",
        "not openvino fp32",
    ]
    assert json.loads(result.stdout)["error"] is None
