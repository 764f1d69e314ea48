"""Engines inside a bundle: built from the bundle alone, named, audited, reused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.errors import BackendUnavailableError, BundleError, ExportError, PlanMismatchError
from amlr.export.additions import add_to_bundle
from amlr.export.cli import export_command
from amlr.export.options import ExportOptions
from amlr.export.profiles import Extent, Profile
from amlr.export.staging import StagedBundle
from amlr.export.tensorrt.engines import add_engines
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine_record import (
    EngineRecord,
    choose_engine,
    describe_engine,
    host_platform,
)
from amlr.runtime.tensorrt_library import load_tensorrt
from log_lines import log_lines
from tiny_ladder import write_posts

SMALL = Profile(posts=Extent(1, 4, 16), units=Extent(1, 32, 384), pool=Extent(1, 2, 8))
OPTIONS = ExportOptions(targets=("tensorrt-rtx",), profiles=(SMALL,), sms=(80, 89, 120))


@pytest.fixture(scope="module")
def built(cuda_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    folder = tmp_path_factory.mktemp("engines")
    calib = write_posts(folder, images=3, count=40)
    with log_lines() as lines:
        add_to_bundle(cuda_plan, folder / "fp32.plan", OPTIONS)
        half = replace(OPTIONS, precisions=("fp16",), calib=calib)
        add_to_bundle(folder / "fp32.plan", folder / "with.plan", half)
    return folder / "with.plan", lines


def test_engines_are_named_listed_and_audited(built: tuple[Path, list[str]]) -> None:
    out, lines = built
    bundle = Bundle.open(out)
    version = load_tensorrt("tensorrt-rtx").version
    assert len(bundle.manifest.engines) == 2
    for values in bundle.manifest.engines:
        record = EngineRecord.from_dict(values)
        assert record.sms == (80, 89, 120)
        for name, engine in record.graphs.items():
            place = f"engines/tensorrt-rtx-{version}-sm80-sm89-sm120/{record.precision}"
            assert engine.file == f"{place}/{name}.engine"
            assert bundle.manifest.files[engine.file].bytes == engine.bytes
            assert set(engine.audit["outputs"].values()) == {"FLOAT"}
            assert ("HALF" in engine.audit["dtypes"]) == (record.precision == "fp16")
        text = record.graphs["text"].shapes[0]["input_ids"]
        assert text == ((1, bundle.manifest.scales), (4, 32), (16, 64))
    assert any("text: " in line and "built in" in line and "float32: " in line for line in lines)
    assert f"step 2 of 3: building tensorrt-rtx-{version}, fp16, for SM 8.0, 8.9, 12.0" in lines
    assert sum(line.strip().startswith("engine: tensorrt-rtx") for line in lines) == 2
    # The text's heads of 8 values are too narrow for any kernel. Float32 has none, and no warning.
    (warning,) = [line for line in lines if "attentions became one kernel" in line]
    assert warning.strip().startswith("text: 0 of 2 attentions became one kernel each, all were")


def test_bundle_with_engines_still_runs_on_onnxruntime(built: tuple[Path, list[str]]) -> None:
    with Engine.load(built[0], provider="onnxruntime") as engine:
        assert engine.precision == "fp32"
        assert engine.tag("Jordan in Paris").error is None


def test_nothing_is_built_twice(
    built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("amlr.export.tensorrt.engines.build_plan", refuse)
    with log_lines() as lines:
        again = add_to_bundle(built[0], tmp_path / "again.plan", OPTIONS)
    assert len(again.engines) == 2
    assert sum("unchanged" in line for line in lines) == 3
    other = replace(OPTIONS, profiles=(replace(SMALL, posts=Extent(1, 8, 16)),))
    with pytest.raises(AssertionError, match="built again"):
        add_to_bundle(built[0], tmp_path / "other.plan", other)
    assert not (tmp_path / "other.plan").exists()


def test_batches_become_profiles(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    command = ["--from", str(tiny_plan), "--out", str(tmp_path / "b.plan"), "--batches", "1,32"]
    command += ["--target", "tensorrt-rtx", "--sms", "89"]
    monkeypatch.setattr("amlr.export.additions.add_kernels", lambda bundle: None)
    result = CliRunner().invoke(export_command, command)
    assert result.exit_code == 0, result.output
    (values,) = Bundle.open(tmp_path / "b.plan").manifest.engines
    graphs = EngineRecord.from_dict(values).graphs
    ranges = {
        graph: [tuple(size[0] for size in shapes[name]) for shapes in graphs[graph].shapes]
        for graph, name in (("text", "input_ids"), ("fusion", "slot_b"), ("image", "pixel_values"))
    }
    windows = [(1, 1, 1), (2, 32, 32)]
    assert ranges == {"text": windows, "fusion": windows, "image": [(1, 1, 1), (2, 16, 16)]}


def test_inspection_names_profiles_and_precision(built: tuple[Path, list[str]]) -> None:
    manifest = json.loads((built[0] / "manifest.json").read_text())
    text = "\n".join(
        line
        for entry in manifest["engines"]
        for line in describe_engine(EngineRecord.from_dict(entry))
    )
    assert "fp16" in text
    assert "profile 0 input_ids: 1x6 / 4x32 / 16x64" in text
    assert "float32: " in text
    assert text.count("0 of 2 attentions fused") == 2


def test_extending_needs_no_torch(built: tuple[Path, list[str]]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import amlr.export.additions"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_variant_and_missing_library(tiny_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    library = load_tensorrt("tensorrt-rtx")
    bundle = StagedBundle(tiny_plan, Bundle.open(tiny_plan).manifest)
    with pytest.raises(ExportError, match="no variant 'int8'"):
        add_engines(bundle, library, "int8", OPTIONS)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        add_to_bundle(tiny_plan, tmp_path / "x.plan", replace(OPTIONS, targets=("tensorrt",)))
    assert not (tmp_path / "x.plan").exists()


def _record(built: Path, **changes: object) -> EngineRecord:
    engines = Bundle.open(built).manifest.engines
    records = [EngineRecord.from_dict(values) for values in engines]
    half = next(record for record in records if record.precision == "fp16")
    return replace(half, **changes)  # type: ignore[arg-type]


def test_plans_are_refused_by_their_names(built: tuple[Path, list[str]]) -> None:
    record = _record(built[0])
    wanted = {"version": record.version, "precision": "fp16", "sm": 89, "bundle": "b.plan"}

    def choose(records: list[EngineRecord], **changes: object) -> EngineRecord:
        return choose_engine(records, library="tensorrt-rtx", **(wanted | changes))  # type: ignore[arg-type]

    assert choose([record]) is record
    command = "amlr-export --from b.plan --target tensorrt-rtx"
    cases: list[tuple[list[EngineRecord], dict[str, object], str]] = [
        ([], {}, "holds no engines"),
        ([record], {"sm": 90}, "another device: found .*SM 8.0, 8.9, 12.0.*needed: .*SM 9.0"),
        ([record], {"version": "1.9.0.1"}, "another version: found .*needed: tensorrt-rtx 1.9.0.1"),
        ([replace(record, platform="windows-amd64")], {}, f"another platform.*{host_platform()}"),
        ([replace(record, graphs={})], {}, "lack graphs"),
        ([record], {"precision": "bf16"}, "needed: .*bf16"),
    ]
    for records, changes, message in cases:
        with pytest.raises(PlanMismatchError, match=message) as caught:
            choose(records, **changes)
        assert command in str(caught.value)
    lasting = replace(record, options={**record.options, "version_compatible": True})
    assert choose([lasting], version="2.0.0.0") is lasting
    with pytest.raises(PlanMismatchError):
        choose([lasting], version="1.6.0.0")


def test_broken_record_is_a_bundle_error() -> None:
    with pytest.raises(BundleError, match="build the engines again"):
        EngineRecord.from_dict({"library": "tensorrt"})
