"""The real kernels under AddressSanitizer, ThreadSanitizer and, on a GPU, compute-sanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

from amlr.kernels.device import Device
from amlr.kernels.images import KernelSpec
from amlr.kernels.launch import Compile
from requirements import require
from shims.corpus import SPECS, record_corpus
from shims.host_build import HostBuilder


@pytest.fixture(scope="module")
def recording(host_builder: HostBuilder) -> Path:
    return record_corpus(host_builder, host_builder.folder / "corpus.bin")


@pytest.fixture(scope="module")
def small_recording(host_builder: HostBuilder) -> Path:
    return record_corpus(host_builder, host_builder.folder / "small.bin", small=True)


def replay(program: Path, recording: Path, *seeds: int) -> None:
    command = [str(program), str(recording), *map(str, seeds)]
    if program.name.endswith("tsan") and shutil.which("setarch"):
        # TSan's shadow layout does not fit a heavily randomised address space.
        command = ["setarch", "-R", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "all equal" in done.stdout


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.function(spec.source))
def test_random_schedules_change_nothing(
    host_builder: HostBuilder, recording: Path, spec: KernelSpec
) -> None:
    replay(host_builder.replay(spec), recording, 1, 2, 3)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.function(spec.source))
def test_address_sanitizer(host_builder: HostBuilder, recording: Path, spec: KernelSpec) -> None:
    replay(host_builder.replay(spec, "asan"), recording)


# 17 tags differ from 9 only in the survivors' packing.
@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS if spec.tags != 17], ids=lambda spec: spec.function(spec.source)
)
def test_thread_sanitizer(
    host_builder: HostBuilder, small_recording: Path, spec: KernelSpec
) -> None:
    replay(host_builder.replay(spec, "tsan"), small_recording)


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(
    host_builder: HostBuilder,
    recording: Path,
    opened_device: Device,
    compile_once: Compile,
    tmp_path: Path,
    tool: str,
) -> None:
    require("compute-sanitizer")
    for spec in SPECS:
        image = compile_once(spec, f"sm_{opened_device.sm}")
        (tmp_path / f"{spec.function(spec.source)}.cubin").write_bytes(image)
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += [str(host_builder.device_replay()), str(recording), str(tmp_path)]
    command += ["--unwritten"] if tool == "initcheck" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "all equal" in done.stdout
