import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.errors import BackendUnavailableError, BundleError, ParityError
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest
from amlr.runtime.options import EngineOptions
from amlr.runtime.providers import registry
from amlr.runtime.providers.onnxruntime import OnnxRuntimeProvider
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.tier_timing import TierTime
from amlr.runtime.tiers import list_tiers
from bundles import relist


def absent(bundle: Any, variant: Any, options: Any) -> Any:
    raise BackendUnavailableError("no such device")


def crashing(bundle: Any, variant: Any, options: Any) -> Any:
    raise RuntimeError("library bug\nmore lines")


class Off(OnnxRuntimeProvider):
    """Numbers slightly off."""

    def score(self, batch: Any, images: Any) -> Any:
        scores = super().score(batch, images)
        scores.emissions_ny[:] += 0.1
        return scores


def off(bundle: Any, variant: Any, options: Any) -> Any:
    return Off(bundle, variant, options)


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tiers that cannot serve stand above the CPU."""
    targets = {
        "tensorrt": f"{__name__}:absent",
        "tensorrt-rtx": "amlr.runtime.providers.missing:open",
        "onnxruntime-cuda": f"{__name__}:crashing",
        "openvino": f"{__name__}:off",
        "onnxruntime-cpu": registry.PROVIDERS["onnxruntime-cpu"],
    }
    monkeypatch.setattr(registry, "PROVIDERS", targets)


@pytest.mark.usefixtures("ladder")
def test_auto_takes_the_first_that_proves_itself(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, precision="exact") as engine:
        assert engine.provider == engine.tag("Paris").provider == "onnxruntime-cpu"
        reasons = {skipped.provider: skipped.reason for skipped in engine.skipped}
    assert list(reasons) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino"]
    assert reasons["tensorrt"] == "no such device"
    assert "has no provider" in reasons["tensorrt-rtx"]
    assert reasons["onnxruntime-cuda"] == "RuntimeError: library bug"
    assert "emissions" in reasons["openvino"]
    assert "would pass" in reasons["openvino"]


@pytest.mark.usefixtures("ladder")
def test_by_name_the_reason_is_raised(tiny_plan: Path) -> None:
    with pytest.raises(ParityError, match="emissions"):
        Engine.load(tiny_plan, provider="openvino")
    with pytest.raises(BackendUnavailableError, match="no such device"):
        Engine.load(tiny_plan, provider="tensorrt")
    with Engine.load(tiny_plan, provider="openvino", check="off") as engine:
        engine.tag("Paris")


def test_nothing_can_serve(tiny_plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dict.fromkeys(registry.PROVIDERS, f"{__name__}:absent")
    monkeypatch.setattr(registry, "PROVIDERS", nothing)
    with pytest.raises(BackendUnavailableError, match="openvino fp32: no such device"):
        Engine.load(tiny_plan)


def test_auto_tries_only_names_that_exist() -> None:
    for names in registry.GROUPS.values():
        assert set(names) <= set(registry.PROVIDERS)
        assert len(set(names)) == len(names)


def test_two_tiers_need_a_provider_of_the_cpu(tiny_plan: Path) -> None:
    manifest = Bundle.open(tiny_plan).manifest
    for precision in ("escalate", "bf16+fp32"):
        options = EngineOptions(provider="tensorrt", precision=precision)
        with pytest.raises(BundleError, match=r"on a CPU, which provider 'tensorrt' is not"):
            list_tiers(manifest, options)


def test_a_library_that_lacks_its_own_module_is_not_hidden(
    tiny_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PROVIDERS, "openvino", "amlr.runtime.providers.base:absent")
    with pytest.raises(AttributeError):
        Engine.load(tiny_plan, provider="openvino")


def variant_of(plan: Path, target: Path, **parity: int) -> Path:
    """A copy with a second variant, `int8`, on the same graphs."""
    copy = Path(shutil.copytree(plan, target))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["variants"]["int8"] = manifest["variants"]["fp32"] | {
        "precision": "int8",
        "parity": parity,
    }
    (copy / "manifest.json").write_text(Manifest.from_json(json.dumps(manifest)).to_json())
    return copy


def test_precision_auto_needs_a_budget_above_zero(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faster_in_int8(contestants: Any, *_: Any, **__: Any) -> list[TierTime]:
        return [
            TierTime(
                provider=tier.provider,
                precision=tier.variant.precision,
                alone_ms=ms,
                batch_ms=ms,
                picture_ms=ms,
            )
            for tier, _, _ in contestants
            for ms in [1.0 if tier.variant.precision == "int8" else 2.0]
        ]

    # The copies are equally fast.
    monkeypatch.setattr("amlr.runtime.tier_choice.time_tiers", faster_in_int8)
    verified = variant_of(tiny_plan, tmp_path / "a", changed_entities=0, entities=90)
    lossy = variant_of(tiny_plan, tmp_path / "b", changed_entities=1, entities=90)
    chosen = []
    for plan, options in (
        (verified, {}),
        (verified, {"max_changed": 0.001}),
        (verified, {"precision": "exact"}),
        (lossy, {}),
        (lossy, {"max_changed": 0.05}),
        (lossy, {"precision": "int8"}),
    ):
        with Engine.load(plan, provider="onnxruntime-cpu", **options) as engine:
            chosen.append(engine.tag("Paris").precision)
    assert chosen == ["fp32", "int8", "fp32", "fp32", "int8", "int8"]


def spoilt_golden(plan: Path, target: Path, **changes: Any) -> Path:
    """A copy whose golden tensors were changed and listed again."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(plan, target))
    path = copy / "golden.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    for name, change in changes.items():
        if name == "posts":
            metadata["posts"] = change(metadata["posts"])
        else:
            tensors[name.replace("_at_", ".")] = change(tensors[name.replace("_at_", ".")])
    save_file(tensors, path, metadata)
    relist(copy, "golden.safetensors")
    return copy


def test_golden_check_sees_each_kind_of_difference(tiny_plan: Path, tmp_path: Path) -> None:
    def drop_entities(posts: str) -> str:
        return json.dumps([post | {"entities": []} for post in json.loads(posts)])

    def shift(by: float) -> Any:
        return lambda values: (values + by).astype(values.dtype)

    cases = {
        "pixels": ({"pixels_at_0": shift(0.2)}, "prepares pictures differently"),
        "tokens": ({"0_at_input_ids": lambda ids: ids[:-1]}, "word rule"),
        "units": ({"0_at_unit_starts": shift(1)}, "unit_starts"),
        "logits": ({"0_at_unit_logits": shift(0.01)}, "unit_logits"),
        "emissions": ({"0_at_emissions": lambda e: np.full_like(e, np.nan)}, "emissions"),
        "entities": ({"posts": drop_entities}, "expected"),
    }
    for name, (changes, match) in cases.items():
        plan = spoilt_golden(tiny_plan, tmp_path / name, **changes)
        with pytest.raises(ParityError, match=match):
            Engine.load(plan, provider="onnxruntime-cpu")
    quiet = spoilt_golden(tiny_plan, tmp_path / "ok", **{"0_at_unit_logits": shift(1e-5)})
    Engine.load(quiet, provider="onnxruntime-cpu").close()
    with pytest.raises(BundleError, match="incomplete"):
        Bundle.open(spoilt_golden(tiny_plan, tmp_path / "bad", posts=lambda posts: "[{}]"))


def test_cpu_factory_reports_its_tier(tiny_plan: Path) -> None:
    from amlr.runtime.providers.base import ProviderOptions

    bundle = Bundle.open(tiny_plan)
    variant = bundle.manifest.variants["fp32"]
    provider = open_provider("onnxruntime-cpu", bundle, variant, ProviderOptions())
    assert isinstance(provider, OnnxRuntimeProvider)
    assert (provider.name, provider.precision) == ("onnxruntime-cpu", "fp32")
    assert provider.loaded_graphs == ()
