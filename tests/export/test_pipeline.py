"""A checkpoint becomes a verified bundle, or nothing at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch import Tensor

from amlr.errors import CheckpointError, ParityError
from amlr.export import pipeline
from amlr.export.cli import export_command
from amlr.export.eager import EagerProvider, load_reference
from amlr.export.options import ExportOptions
from amlr.export.pipeline import export_checkpoint
from amlr.export.samples import sample_posts
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle


def test_bundle_is_complete_and_loads(tiny_plan: Path) -> None:
    manifest = json.loads((tiny_plan / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["classes"] == ["none", "PER", "LOC", "ORG", "OTHER"]
    listed = set(manifest["files"]) | {"manifest.json"}
    found = {p.relative_to(tiny_plan).as_posix() for p in tiny_plan.rglob("*") if p.is_file()}
    assert listed == found
    assert manifest["variants"]["fp32"]["parity"]["changed_entities"] == 0
    assert manifest["variants"]["fp32"]["parity"]["entities"] > 0
    with Engine.load(tiny_plan, provider="onnxruntime") as engine:
        assert engine.tag("Jordan in Paris").precision == "fp32"


def test_reference_rebuilds_the_eager_model(tiny_plan: Path) -> None:
    bundle = Bundle.open(tiny_plan)
    posts = sample_posts(9, seed=5)
    with (
        Engine(bundle, EagerProvider(load_reference(bundle))) as eager,
        Engine.load(tiny_plan, provider="onnxruntime") as engine,
    ):
        for a, b in zip(eager.raw(posts), engine.raw(posts), strict=True):
            np.testing.assert_allclose(a.unit_logits, b.unit_logits, atol=1e-5)
            np.testing.assert_allclose(a.emissions, b.emissions, atol=1e-5)


def test_failed_parity_leaves_no_bundle(
    tiny_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.build_graphs

    def wrong(model: object, **options: object) -> object:
        specs = real(model, **options)  # type: ignore[arg-type]
        fusion = next(s for s in specs if s.name == "fusion_packed")
        fusion.module.block.model.token_head.bias.data += 0.01  # type: ignore[union-attr,operator]
        return specs

    original = pipeline.write_graphs

    def restore(specs: list[object], folder: Path) -> object:
        files = original(specs, folder)  # type: ignore[arg-type]
        fusion = next(s for s in specs if s.name == "fusion_packed")  # type: ignore[attr-defined]
        bias: Tensor = fusion.module.block.model.token_head.bias  # type: ignore[attr-defined]
        bias.data -= 0.01
        return files

    monkeypatch.setattr(pipeline, "build_graphs", wrong)
    monkeypatch.setattr(pipeline, "write_graphs", restore)
    with pytest.raises(ParityError, match=r"emissions differs .* would pass"):
        export_checkpoint(tiny_pt, tmp_path / "amlr.plan")
    assert list(tmp_path.iterdir()) == []


def test_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'echo no'\ntR.")
    with pytest.raises(CheckpointError):
        export_checkpoint(path, tmp_path / "amlr.plan")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_command_exports_without_reference(tiny_pt: Path, tmp_path: Path) -> None:
    out = tmp_path / "news.plan"
    arguments = ["--ckpt", str(tiny_pt), "--out", str(out), "--no-reference"]
    result = CliRunner().invoke(export_command, arguments)
    assert result.exit_code == 0, result.output
    assert "0 changed" in result.stderr
    assert not (out / "reference.safetensors").exists()
    assert json.loads((out / "manifest.json").read_text())["name"] == "news"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --ckpt"),
        (["--ckpt", "missing.pt"], "no checkpoint at"),
        (["--ckpt", "x.pt", "--image-mean", "1,2"], "needs numbers"),
    ],
)
def test_command_errors_are_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(export_command, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_tolerance_is_enforced(tiny_pt: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="allowed"):
        export_checkpoint(tiny_pt, tmp_path / "a.plan", ExportOptions(tolerance=1e-12))


def test_damaged_weights_are_found_at_load(tiny_plan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.plan"
    shutil.copytree(tiny_plan, copy)
    weights = copy / "onnx" / "fp32" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(Exception, match=r"weights\.bin is damaged"):
        Engine.load(copy, provider="onnxruntime")
