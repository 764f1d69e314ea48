"""The written repository: against Triton's own message definition and against the graphs."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from amlr.errors import BundleError, ExportError
from amlr.export.cli import export_command
from amlr.runtime import Engine
from amlr.runtime.bundle import Bundle
from amlr.serving.triton.pbtxt import to_text
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
        for part in ("models", "ensemble"):
            found = configs(root / part)
            assert found
            for name, config in found.items():
                assert config.name == name
                assert (root / part / name / "1").is_dir()
                assert bool(config.backend) != (config.platform == "ensemble")
                assert (root / part / name / "1" / "model.py").exists() == (
                    config.backend == "python"
                )


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
    for sample in cpu.model_warmup:
        for value in sample.inputs.values():
            content = (written / "models" / "amlr" / "warmup" / value.input_data_file).read_bytes()
            assert int.from_bytes(content[:4], "little") == len(content) - 4 > 0


def test_ensemble_connects(written: Path, written_with_engines: Path) -> None:
    for root in (written, written_with_engines):
        models = configs(root / "ensemble")
        whole = models["amlr_ensemble"]
        known = {i.name: (i.data_type, list(i.dims)) for i in whole.input}
        for step in whole.ensemble_scheduling.step:
            model = models[step.model_name]
            inputs = {i.name: (i.data_type, list(i.dims)) for i in model.input}
            outputs = {o.name: (o.data_type, list(o.dims)) for o in model.output}
            assert set(step.input_map) == set(inputs)
            assert set(step.output_map) == set(outputs)
            for own, shared in step.input_map.items():
                assert known[shared] == inputs[own], (step.model_name, own)
            known |= {shared: outputs[own] for own, shared in step.output_map.items()}
        used = {step.model_name for step in whole.ensemble_scheduling.step}
        assert used == set(models) - {"amlr_ensemble"}
        for output in whole.output:
            assert known[output.name] == (output.data_type, list(output.dims))


def test_graph_models_agree_with_the_graphs(written: Path) -> None:
    types = {"TYPE_INT64": onnx.TensorProto.INT64, "TYPE_FP32": onnx.TensorProto.FLOAT}
    for graph in ("text", "image", "fusion"):
        config = configs(written / "ensemble")[f"amlr_{graph}"]
        assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)
        path = written / "ensemble" / config.name / "1" / "model.onnx"
        model = onnx.load(str(path))  # with its weights, which must lie beside it
        _same_tensors(config.input, model.graph.input, types)
        _same_tensors(config.output, model.graph.output, types)


def _same_tensors(mine: Any, theirs: Any, types: dict[str, int]) -> None:
    name_of = type(mine[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert [value.name for value in mine] == [value.name for value in theirs]
    for own, graph in zip(mine, theirs, strict=True):
        assert types[name_of[own.data_type].name] == graph.type.tensor_type.elem_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in _dims(graph)]
        assert len(sizes) == len(own.dims)
        for size, fixed in zip(sizes, own.dims, strict=True):
            # A size that the exporter could not infer may be told; one that is free may not.
            assert size == fixed or (size == -1 and graph.name == "regions_bpd"), graph.name


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def test_engines_go_to_the_tensorrt_backend(written_with_engines: Path) -> None:
    models = configs(written_with_engines / "ensemble")
    for graph in ("text", "image", "fusion"):
        assert models[f"amlr_{graph}"].backend == "tensorrt"
        assert (written_with_engines / "ensemble" / f"amlr_{graph}" / "1" / "model.plan").is_file()
    limits = models["amlr_prepare"].parameters
    assert {n: limits[n].string_value for n in ("windows", "pictures", "steps")} == {
        "windows": "16",
        "pictures": "4",
        "steps": "6",
    }
    assert "Not executed" in (written_with_engines / "README.md").read_text()


def test_repository_stands_on_its_own(tiny_plan: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_plan, tmp_path / "a.plan")
    write_repository(tmp_path / "a.plan", tmp_path / "triton")
    shutil.rmtree(tmp_path / "a.plan")
    (tmp_path / "triton").rename(tmp_path / "elsewhere")
    with Engine.load(tmp_path / "elsewhere" / "models" / "amlr" / "1" / "amlr.plan", threads=1):
        pass


def test_replaces_its_own_and_nothing_else(tiny_plan: Path, tmp_path: Path) -> None:
    out = write_repository(tiny_plan, tmp_path / "triton")
    (out / "left over").write_text("")
    write_repository(tiny_plan, out)
    assert not (out / "left over").exists()
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


def test_text_format_escapes_what_must_be() -> None:
    pb: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")
    text_format: Any = importlib.import_module("google.protobuf.text_format")
    name = 'a"b\\c\nd é 中\x00'
    assert text_format.Parse(to_text({"name": name}), pb.ModelConfig()).name == name
    with pytest.raises(TypeError):
        to_text({"name": None})


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
