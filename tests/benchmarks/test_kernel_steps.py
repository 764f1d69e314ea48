"""The kernel steps of a GPU run, on the driver double; what they print is what a device would."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from amlr.benchmarks.gpu import kernel_steps
from amlr.benchmarks.gpu.context import Context
from amlr.benchmarks.gpu.run import read_rows, step_command
from amlr.errors import BackendUnavailableError
from amlr.kernels.nvrtc import load_nvrtc
from requirements import require
from shims.corpus import SPECS
from shims.host_build import KERNELS, HostBuilder
from shims.kernel_kit import double_environment, write_kernel_kit

STEPS = ("replay", "sanitizers", "times")


@dataclass(frozen=True, slots=True)
class Bench:
    """A kit, the environment of a driver double, and the program that replays launches there."""

    kit: Path
    environment: dict[str, str]
    program: Path

    def replay(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        files = [str(self.kit / "kernels" / name) for name in ("small.bin", "cubins")]
        return subprocess.run(
            [str(self.program), *files, *options],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | self.environment | environment,
        )


@pytest.fixture(scope="module")
def bench(host_builder: HostBuilder, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    try:
        load_nvrtc()
    except BackendUnavailableError as error:
        require("nvrtc", found=False, reason=str(error))
    kit = tmp_path_factory.mktemp("kit")
    environment = double_environment(host_builder)
    write_kernel_kit(kit / "kernels", host_builder)
    return Bench(kit, environment, host_builder.device_replay())


def test_the_kit_travels_light(bench: Bench) -> None:
    files = [path for path in (bench.kit / "kernels").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6
    assert len(json.loads((bench.kit / "kernels" / "specs.json").read_text())) == len(SPECS)


def test_every_step_runs_on_the_double(bench: Bench, tmp_path: Path) -> None:
    hidden = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "nvcc").exists()
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "g++").symlink_to("/usr/bin/g++")
    environment = os.environ | bench.environment | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{hidden}",
        "PYTHONPATH": os.pathsep.join([str(kernel_steps.ROOT / "src"), *sys.path]),
    }  # fmt: skip
    context = Context(kit=bench.kit, work=tmp_path, out=tmp_path, smoke=True, dry=True)
    for step in STEPS:
        command = step_command(step, f"amlr.benchmarks.gpu.kernel_steps:{step}", context)
        subprocess.run(command, check=True, env=environment)
    written = read_rows(tmp_path / "results.jsonl")
    assert [row["status"] for row in written if row["kind"] == "outcome"] == ["done"] * 3
    rows = [row for row in written if row["kind"] == "row"]
    assert all(row["dry_run"] for row in rows)
    of = {step: [row for row in rows if row["step"] == step] for step in STEPS}
    assert [row.get("equal") for row in of["replay"]] == [True, None, True]
    assert "nvcc" in of["replay"][1]["not_run"]
    assert [row["clean"] for row in of["sanitizers"]] == [True] * 4
    times = of["times"]
    assert {row["kernel"] for row in times if "us" in row} == {
        "launch floor",
        "linear_viterbi",
        "linear_confidence",
        "joint_scores",
        "segmental_viterbi",
        "segmental_confidence",
        "box re-decode",
        "joint box re-decode",
        "joint and segmental",
        "joint, segmental, confidence",
    }
    assert all(row["equal"] for row in times if "equal" in row)
    assert all(row["max_abs_error"] < 1e-5 for row in times if "max_abs_error" in row)
    assert {row["decoder"] for row in times if "decoder" in row} == {"numpy", "pytorch-crf, cpu"}


def test_the_replay_compares_every_byte(bench: Bench) -> None:
    for options in ([], ["--unwritten"]):
        done = bench.replay(*options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "11 launches, all equal" in done.stdout


@pytest.mark.parametrize(
    ("source", "old", "new", "blamed"),
    [
        ("linear_viterbi", "score + end_y[j]", "score", "linear_viterbi_y9"),
        ("linear_confidence", "scale * end_y[j]", "0.0f", "linear_confidence_y9"),
    ],
)
def test_a_wrong_kernel_is_noticed(
    bench: Bench, tmp_path: Path, source: str, old: str, new: str, blamed: str
) -> None:
    text = (KERNELS / f"{source}.cu").read_text()
    assert old in text
    mutant = tmp_path / f"{source}.cu"
    mutant.write_text(text.replace(old, new))
    original = Path(bench.environment["AMLR_DOUBLE_KERNELS"])
    for library in original.glob("*.so"):
        if not library.name.startswith(f"{source}_y9"):
            (tmp_path / library.name).symlink_to(library)
    spec = next(spec for spec in SPECS if spec.source == source and spec.tags == 9)
    HostBuilder(tmp_path, {source: mutant}).library(spec)
    done = bench.replay(AMLR_DOUBLE_KERNELS=str(tmp_path))
    assert done.returncode == 1
    assert f"WRONG RESULT: {blamed}" in done.stdout
    assert "launches, " in done.stdout.splitlines()[-1]
    assert "differ" in done.stdout.splitlines()[-1]


def test_input_that_is_not_uploaded_is_noticed(bench: Bench) -> None:
    done = bench.replay("--plant-unwritten")
    assert done.returncode == 1
    assert "WRONG RESULT" in done.stdout


def test_broken_files_are_refused(bench: Bench, tmp_path: Path) -> None:
    whole = (bench.kit / "kernels" / "small.bin").read_bytes()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "small.bin").write_bytes(whole[:-100])
    (tmp_path / "kernels" / "cubins").mkdir()
    broken = replace(bench, kit=tmp_path)
    done = broken.replay()
    assert done.returncode == 2
    assert "the recording is cut short" in done.stderr
    (tmp_path / "kernels" / "small.bin").write_bytes(whole)
    done = broken.replay()
    assert done.returncode == 2
    assert "no .cubin in" in done.stderr


def test_sanitizer_summaries_are_counted() -> None:
    count = kernel_steps._count
    assert count("ERROR SUMMARY: 0 errors") == 0
    assert count("ERROR SUMMARY: 64 errors") == 64
    assert count("RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)") == 3
    assert count(None) == -1
