"""`make gpu`: refuses at once without a GPU; its steps and report run here on CPU tiers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.benchmarks.gpu.__main__ import gpu_command
from amlr.benchmarks.gpu_report import markdown
from amlr.benchmarks.gpu_run import GpuPlan, run_gpu
from amlr.benchmarks.gpu_tiers import GpuTier, torch_engine
from amlr.errors import BackendUnavailableError
from amlr.kernels.driver import DriverInfo, probe_driver
from amlr.runtime import Engine


def _has_gpu() -> bool:
    try:
        probe_driver()
    except BackendUnavailableError:
        return False
    return True


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_it_refuses_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_command, ["--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no NVIDIA driver was found" in result.output
    assert "fix: install the NVIDIA driver" in result.output
    assert not (tmp_path / "out").exists()


def test_the_refusal_loads_nothing_heavy() -> None:
    heavy = "'torch', 'onnx', 'onnxruntime', 'tokenizers'"
    code = (
        "import sys, amlr.benchmarks.gpu.__main__\n"
        f"print([m for m in ({heavy}) if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_steps_go_on_where_one_cannot_run(tiny_plan: Path, tmp_path: Path) -> None:
    def tiers(path: Path) -> Sequence[GpuTier]:
        def broken() -> Engine:
            raise BackendUnavailableError("tensorrt is not here")

        return [
            GpuTier(
                name="eager", open=lambda: torch_engine(path, "cpu", compiled=False, half=False)
            ),
            GpuTier(name="cpu", open=lambda: Engine.load(path, provider="onnxruntime-cpu")),
            GpuTier(name="broken", open=broken),
        ]

    plan = GpuPlan(engine=tiny_plan, out=tmp_path, posts=6, seconds=0.01, tests=False)
    lines: list[str] = []
    report = run_gpu(plan, DriverInfo(version=13000, devices=1), say=lines.append, tiers=tiers)
    json.dumps(report)
    rows = {row["name"]: row for row in report["tiers"]}
    assert rows["eager"]["changed_entities"] == 0 < rows["eager"]["entities"]
    assert rows["cpu"]["precision"] == "fp32"
    assert [cell["batch"] for cell in rows["cpu"]["latency"]] == [1, 1, 8, 8, 32, 32]
    assert rows["broken"]["not_run"] == "tensorrt is not here"
    assert report["failed"] == []
    page = markdown(report)
    assert "| eager | 6 |" in page
    assert "- broken: tensorrt is not here" in page
    assert "building tensorrt" in page
    if not _has_gpu():
        assert any("not run" in line for line in lines)


def test_a_changed_entity_fails_the_run(
    tiny_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "amlr.benchmarks.gpu_run._measure",
        lambda tier, bundle, posts, seconds: {"changed_entities": 1},
    )
    plan = GpuPlan(engine=tiny_plan, out=tmp_path, posts=2, tests=False)
    tier = GpuTier(name="wrong", open=lambda: Engine.load(tiny_plan))
    loose = GpuTier(name="loose", open=tier.open, must_match=False)
    report = run_gpu(plan, DriverInfo(version=13000, devices=1), tiers=lambda path: [tier, loose])
    assert report["failed"] == ["wrong"]
