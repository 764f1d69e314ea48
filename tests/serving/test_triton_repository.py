"""The written repository: against Triton's own message definition and against the graphs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.errors import BundleError, ExportError
from amlr.export.cli import export_command
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.serving.triton.repository import write_repository
from doubles.bundle import double_bundle
from doubles.triton_backend import parse_config

pytest.importorskip("tritonclient", reason="pip install tritonclient[http,grpc]")
pytest.importorskip("grpc", reason="pip install tritonclient[http,grpc]")


@pytest.fixture(scope="module")
def written(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tiny_plan, tmp_path_factory.mktemp("triton") / "triton")


@pytest.fixture(scope="module")
def written_with_engines(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a bundle that lists engines (plans of the engine double, which nothing here loads)."""
    folder = tmp_path_factory.mktemp("triton")
    double_bundle(tiny_plan, folder / "gpu.plan")
    return write_repository(folder / "gpu.plan", folder / "triton")


def configs(repository: Path) -> dict[str, Any]:
    return {p.parent.name: parse_config(p) for p in repository.glob("*/config.pbtxt")}


def test_every_configuration_is_one_of_tritons(written: Path, written_with_engines: Path) -> None:
    for root in (written, written_with_engines):
        assert sorted(p.name for p in root.iterdir()) == ["README.md", "amlr-triton.json", "models"]
        ((name, config),) = configs(root / "models").items()
        assert (config.name, config.backend) == (name, "python")
        assert (root / "models" / name / "1" / "model.py").is_file()


def test_model_takes_its_numbers_from_the_bundle(
    written: Path, written_with_engines: Path, tiny_plan: Path
) -> None:
    cpu = configs(written / "models")["amlr"]
    gpu = configs(written_with_engines / "models")["amlr"]
    assert list(cpu.dynamic_batching.preferred_batch_size) == [8, 16]
    assert list(gpu.dynamic_batching.preferred_batch_size) == [4, 16]  # opt and max of the plan
    kinds = type(cpu.instance_group[0]).Kind
    assert cpu.instance_group[0].kind == kinds.Value("KIND_CPU")
    assert gpu.instance_group[0].kind == kinds.Value("KIND_GPU")
    assert [(i.name, i.optional, list(i.dims)) for i in cpu.input] == [
        ("text", False, [1]),
        ("image", True, [1]),
    ]
    pinned = cpu.parameters["manifest_sha256"].string_value
    assert pinned == Bundle.open(tiny_plan).manifest_sha256


def test_repository_stands_on_its_own(tiny_plan: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_plan, tmp_path / "a.plan")
    write_repository(tmp_path / "a.plan", tmp_path / "triton")
    shutil.rmtree(tmp_path / "a.plan")
    (tmp_path / "triton").rename(tmp_path / "elsewhere")
    with Engine.load(tmp_path / "elsewhere" / "models" / "amlr" / "1" / "amlr.plan", threads=1):
        pass


def test_replaces_its_own_and_nothing_else(tiny_plan: Path, tmp_path: Path) -> None:
    out = write_repository(tiny_plan, tmp_path / "triton")
    # A repository of an older version, which had an ensemble beside the model.
    (out / "ensemble" / "amlr_prepare").mkdir(parents=True)
    write_repository(tiny_plan, out)
    assert not (out / "ensemble").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ExportError, match="choose another folder"):
        write_repository(tiny_plan, tmp_path / "mine")
    shutil.copytree(tiny_plan, tmp_path / "bad.plan")
    with (tmp_path / "bad.plan" / "onnx" / "fp32" / "weights.bin").open("r+b") as file:
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(BundleError, match="damaged"):
        write_repository(tmp_path / "bad.plan", out)
    assert (out / "models").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.plan", "mine", "triton"]


def test_command(tiny_plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "triton"
    done = CliRunner().invoke(export_command, ["--from", str(tiny_plan), "--triton", str(out)])
    assert done.exit_code == 0, done.output
    assert f"--model-repository={out / 'models'}" in done.output
    done = CliRunner().invoke(export_command, ["--ckpt", "a.pt", "--triton", str(out)])
    assert done.exit_code == 2
    assert "--from" in done.output


def test_server_side_needs_no_web_framework() -> None:
    code = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastapi", "starlette", "pydantic", "tritonclient", "torch",
                                      "onnx", "prometheus_client", "google"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
import amlr.serving.triton
for module in pkgutil.walk_packages(amlr.serving.triton.__path__, "amlr.serving.triton."):
    importlib.import_module(module.name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
