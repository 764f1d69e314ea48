"""One tier for a whole run, whoever computes it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.errors import BundleError
from amlr.runtime.options import EngineOptions
from amlr.serving.archive.cli import tag_command
from amlr.serving.archive.plan import Job
from amlr.serving.archive.tier import TIER, choose_in_process, choose_tier, settle_tier

CHOSEN = {"provider": "onnxruntime-cpu", "precision": "fp32"}


def job(plan: Path, out: Path, **engine: Any) -> Job:
    return Job(
        inputs=(),
        output=str(out),
        bundle=str(plan),
        manifest_sha256=None,
        engine=EngineOptions(threads=1, **engine),
        workers=1,
    )


def refuse(asked: Job) -> dict[str, str]:
    raise AssertionError(f"nothing to choose for {asked}")


def test_chosen_once_and_kept(ladder_plan: Path, tmp_path: Path) -> None:
    asked = job(ladder_plan, tmp_path)
    first = settle_tier(asked, lambda job: CHOSEN if job == asked else {})
    assert first == replace(asked, engine=replace(asked.engine, **CHOSEN))
    assert json.loads((tmp_path / TIER).read_text()) == CHOSEN
    assert settle_tier(asked, refuse) == first


@pytest.mark.parametrize(
    "engine",
    [{"provider": "onnxruntime-cpu", "precision": "fp32"}, {"precision": "escalate"}],
)
def test_nothing_to_choose(ladder_plan: Path, tmp_path: Path, engine: dict[str, str]) -> None:
    asked = job(ladder_plan, tmp_path, **engine)
    assert settle_tier(asked, refuse) == asked
    assert not (tmp_path / TIER).exists()


def test_two_tiers_are_named_by_both_precisions(ladder_plan: Path, tmp_path: Path) -> None:
    # What `auto` takes where it certifies; int8 stands for bf16, which not every CPU has.
    asked = job(ladder_plan, tmp_path, provider="onnxruntime", precision="escalate")
    chosen = choose_tier(asked)
    assert chosen["provider"] == "onnxruntime"
    assert chosen["precision"] == "int8+fp32"
    again = replace(asked, engine=replace(asked.engine, **chosen))
    assert settle_tier(again, refuse) == again
    assert choose_tier(again) == chosen


def test_only_one_tier(tiny_plan: Path, tmp_path: Path) -> None:
    asked = job(tiny_plan, tmp_path, provider="onnxruntime-cpu")
    assert settle_tier(asked, refuse) == asked


def test_errors_of_the_process_are_the_engines(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent"):
        choose_in_process(job(tmp_path / "absent", tmp_path))


def test_all_parts_come_from_one_tier(tiny_plan: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"id": i, "text": "Paris"}) + "\n" for i in range(8)))
    command = ["--engine", str(tiny_plan), "--input", str(source), "--output", str(out)]
    command += ["--chunk-rows", "2", "--workers", "2"]

    def tiers(*more: str) -> dict[str, int]:
        done = CliRunner().invoke(tag_command, [*command, *more])
        assert done.exit_code == 0, done.output
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])["tiers"]
        return found

    (name,) = tiers()
    kept = json.loads((out / TIER).read_text())
    assert name == f"{kept['provider']} {kept['precision']}"
    (other,) = {"openvino", "onnxruntime-cpu"} - {kept["provider"]}
    (out / TIER).write_text(json.dumps(kept | {"provider": other}))
    (out / "part-00001.parquet").unlink()
    assert tiers("--resume") == {name: 6, f"{other} {kept['precision']}": 2}
