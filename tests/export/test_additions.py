"""Additions to a bundle: compiled decoders, plans, and refusals before any work."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from amlr.export.cli import export_command
from amlr.runtime import Engine


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export_command, [str(a) for a in arguments])


def test_decoders_are_compiled_into_a_copy(tiny_plan: Path, cuda_plan: Path) -> None:
    manifest = json.loads((cuda_plan / "manifest.json").read_text())
    assert {k["architecture"] for k in manifest["kernels"]} >= {"sm_80", "sm_89", "compute_75"}
    for kernel in manifest["kernels"]:
        assert f"kernels/{kernel['file']}" in manifest["files"]
    listed = json.loads((tiny_plan / "manifest.json").read_text())["files"]
    found = {p.relative_to(tiny_plan).as_posix() for p in tiny_plan.rglob("*") if p.is_file()}
    assert found == {*listed, "manifest.json"}
    assert not any(name.startswith("kernels/") for name in found)
    with Engine.load(cuda_plan, provider="onnxruntime") as engine:
        assert engine.tag("Jordan in Paris").error is None


def test_only_damaged_decoders_are_compiled_again(cuda_plan: Path, tmp_path: Path) -> None:
    source, out = shutil.copytree(cuda_plan, tmp_path / "a.plan"), tmp_path / "again.plan"
    records = json.loads((source / "manifest.json").read_text())["kernels"]
    damaged = source / "kernels" / records[0]["file"]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"?")
    result = run("--from", source, "--out", out, "--target", "cuda", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "manifest.json").read_text())["kernels"] == records
    assert f"{len(records)} images for " in result.stderr
    assert f"{len(records) - 1} of them kept" in result.stderr
    for record in records:
        path = cuda_plan / "kernels" / record["file"]
        assert (out / "kernels" / path.name).read_bytes() == path.read_bytes()


def test_buckets_are_planned_from_posts(tiny_plan: Path, tmp_path: Path) -> None:
    posts = tmp_path / "posts.jsonl"
    lines = [json.dumps({"text": "Paris in spring " * (1 + i % 4)}) for i in range(40)]
    posts.write_text("\n".join(lines))
    result = run("--from", tiny_plan, "--plan-buckets", posts, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["windows"] == 40
    assert len(plan["plans"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp64"], "unknown precision fp64"),
        (["--target", "coreml"], "unknown target coreml"),
        (["--target", "tensorrt"], "tensorrt"),
        (["--sms", "ampere"], "needs numbers"),
    ],
)
def test_refusals_leave_the_bundle_alone(
    tiny_plan: Path, arguments: list[str], message: str
) -> None:
    before = (tiny_plan / "manifest.json").read_bytes()
    result = run("--from", tiny_plan, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (tiny_plan / "manifest.json").read_bytes() == before


def test_source_is_either_checkpoint_or_bundle(tiny_plan: Path) -> None:
    both = run("--from", tiny_plan, "--ckpt", "best.pt")
    assert both.exit_code == 2
    assert "either --ckpt" in both.stderr
