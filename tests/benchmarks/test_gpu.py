"""The GPU run: refuses at once without a GPU; on CPU stand-ins every step runs and is reported."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from amlr.benchmarks.gpu.__main__ import gpu_command
from amlr.benchmarks.gpu.context import Context
from amlr.benchmarks.gpu.kit import add_part
from amlr.benchmarks.gpu.report import markdown, summary
from amlr.benchmarks.gpu.run import STEPS, Run, Step, append_row, orchestrate, read_rows, run_step
from amlr.errors import BackendUnavailableError
from amlr.export.options import ExportOptions
from amlr.export.pipeline import export_checkpoint
from amlr.export.samples import sample_posts
from amlr.kernels.driver import probe_driver
from amlr.runtime.image import ImageSpec
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import save_checkpoint
from amlr.training.random_checkpoint import random_checkpoint
from tiny import TOKEN_IDS, tiny_tokenizer
from tiny_model import IMAGE_SIZE, tiny_config

POSTS = sample_posts(6, images=2)


def _has_gpu() -> bool:
    try:
        probe_driver()
    except BackendUnavailableError:
        return False
    return True


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, tiny_plan: Path) -> Path:
    """A whole kit of tiny bundles, made the way a real one is."""
    root = tmp_path_factory.mktemp("kit")
    config = tiny_config(image="vit", shape_classes=0)
    checkpoint = random_checkpoint(
        config,
        tiny_tokenizer().to_str(),
        TOKEN_IDS,
        image=ImageSpec(size=IMAGE_SIZE),
        text=TextSpec(max_tokens=64, overlap_tokens=16, max_word_tokens=16),
    )
    ckpt, plan = root / "paper.pt", root / "paper.plan"
    save_checkpoint(ckpt, checkpoint)
    export_checkpoint(ckpt, plan, ExportOptions(fold=True))
    add_part(root / "kit" / "paper", plan, POSTS)
    add_part(root / "kit" / "small", tiny_plan, POSTS)
    return root / "kit"


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_it_refuses_within_a_second_with_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amlr.benchmarks.gpu", "--out", str(tmp_path / "out")]
    start = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    assert run.returncode == 2
    assert "no NVIDIA driver was found" in run.stderr
    assert "fix: install the NVIDIA driver" in run.stderr
    assert not (tmp_path / "out").exists()
    # A second on an idle machine; tests share theirs.
    assert seconds < 5


def test_the_refusal_loads_nothing_heavy() -> None:
    heavy = "'torch', 'onnx', 'onnxruntime', 'tokenizers', 'PIL'"
    code = (
        "import sys, amlr.benchmarks.gpu.__main__; "
        f"print([m for m in ({heavy}) if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_dry_run_walks_every_step_and_reports_each(kit: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    context = Context(kit=kit, work=work, out=out, dry=True)

    def in_this_process(run: Run, step: Step, limit: float) -> tuple[str, str]:
        return run_step(step.name, step.target, context)

    run = Run(kit=kit, out=out, work=work, budget=1e6, dry=True)
    assert orchestrate(run, launch=in_this_process), summary(read_rows(out / "results.jsonl"))
    rows = read_rows(out / "results.jsonl")
    ends = {row["step"]: row for row in rows if row["kind"] == "end"}
    assert list(ends) == [step.name for step in STEPS]
    kernels = {step.name for step in STEPS if step.name.startswith("kernel-")}
    for step in STEPS:
        end = ends[step.name]
        if step.name in kernels:
            assert end["status"] == "not run"
            assert "kernel" in end["reason"]
        else:
            assert end["status"] == "done", end
    # Everything that did not run says why.
    missing = [row for row in rows if "not_run" in row]
    assert all(row["not_run"] for row in missing)
    assert not [row for row in missing if "mode" in row]
    by_step = {name: [r for r in rows if r["step"] == name and r["kind"] == "row"] for name in ends}
    exact = [r for r in by_step["ort-parity"] if "changed" in r]
    assert [row["changed"] for row in exact] == [0] * len(exact)
    assert {row["what"] for row in exact} == {"sessions fp32", "engine fp32"}
    same = next(row for row in by_step["eager"] if row.get("what") == "eager fp32")
    assert same["changed"] == 0 < same["entities"]
    speed = by_step["ort-speed"]
    assert {row["mode"] for row in speed} == {"plain", "engine"}
    assert {row["what"] for row in speed if "what" in row} == {
        "text+fusion", "image+text+fusion", "image"
    }  # fmt: skip
    assert {row["threads"] for row in by_step["end-to-end"] if "threads" in row} == {1, 16}
    assert next(r for r in by_step["small"] if r["what"] == "engine fp32")["changed"] == 0
    page = markdown(rows)
    assert all(f"| {step.name} |" in page for step in STEPS)
    printed = summary(rows)
    assert all(f"| {step.name} |" in printed for step in STEPS)
    assert "## text+fusion: device / host ms" in printed


def _steps(folder: Path) -> list[Step]:
    """Steps that end well, are killed while they write, hang, raise, or are not there."""
    (folder / "gpu_test_steps.py").write_text(
        """
import os, signal, time
def good(context):
    yield {"value": 1}
def torn(context):
    yield {"value": 2}
    with (context.out / "results.jsonl").open("a") as file:
        file.write('{"step": "torn", "kind": "row", "val')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
def stuck(context):
    yield {"value": 3}
    time.sleep(60)
def loose(context):
    raise ValueError("no such thing\\nsecond line")
    yield
""",
        encoding="utf-8",
    )
    return [
        Step(name=name, target=f"{module}:{name}", seconds=1, limit=limit, smoke=1)
        for name, module, limit in (
            ("good", "gpu_test_steps", 30),
            ("torn", "gpu_test_steps", 30),
            ("stuck", "gpu_test_steps", 3),
            ("loose", "gpu_test_steps", 30),
            ("absent", "gpu_no_such_module", 30),
        )
    ]


def test_results_survive_steps_that_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [before])]))
    run = Run(kit=tmp_path, out=tmp_path / "out", work=tmp_path / "work", budget=300)
    assert not orchestrate(run, steps=_steps(tmp_path))
    rows = read_rows(run.out / "results.jsonl")
    values = {row["step"]: row["value"] for row in rows if row["kind"] == "row"}
    assert values == {"good": 1, "torn": 2, "stuck": 3}
    ends = {row["step"]: (row["status"], row["reason"]) for row in rows if row["kind"] == "end"}
    assert ends == {
        "good": ("done", ""),
        "torn": ("failed", "ended with exit code -9 without an outcome; see log.txt"),
        "stuck": ("failed", "killed after its limit of 3 s"),
        "loose": ("failed", "ValueError: no such thing"),
        "absent": ("not run", "the package 'gpu_no_such_module' is not installed here"),
    }
    assert "second line" in (run.out / "log.txt").read_text()


def test_rows_after_a_torn_line_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"number": 0})
    whole = json.dumps({"number": 1})
    for cut in range(len(whole)):
        path.write_text('{"number": 0}\n' + whole[:cut], encoding="utf-8")
        append_row(path, {"number": 2})
        assert [row["number"] for row in read_rows(path)] == [0, 2]


@pytest.mark.parametrize("smoke", [False, True])
def test_the_budget_starts_no_step_that_it_does_not_hold(tmp_path: Path, smoke: bool) -> None:
    steps = [
        Step(name="dear", target="no.module:x", seconds=90, limit=100, smoke=20),
        Step(name="cheap", target="no.module:x", seconds=5, limit=9, smoke=0),
    ]
    run = Run(kit=tmp_path, out=tmp_path / "out", work=tmp_path / "w", budget=20, smoke=smoke)
    ticks = itertools.count()
    orchestrate(run, steps=steps, clock=lambda: next(ticks) * 0.5)
    rows = [r for r in read_rows(run.out / "results.jsonl") if r["kind"] == "end"]
    reasons = {row["step"]: row.get("reason") for row in rows}
    assert reasons["dear"] == f"budget: 16 s left, {20 if smoke else 90} s needed"
    expected = "not part of a smoke run" if smoke else "the package 'no' is not installed here"
    assert reasons["cheap"] == expected
    assert all(row.get("status", "not run") == "not run" for row in rows)


def test_unknown_steps_and_a_missing_kit_are_refused(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(gpu_command, [*out, "--steps", "eager,typo"])
    assert result.exit_code == 2
    assert "['typo']; expected some of ceilings" in result.output
    result = CliRunner().invoke(gpu_command, [*out, "--kit", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "no kit at" in result.output
