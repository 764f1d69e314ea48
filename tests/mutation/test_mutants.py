"""Every injected bug is caught by the job that is meant to catch it."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mutation.mutants import MUTANTS, Mutant
from requirements import require
from shims.corpus import SPECS, record_corpus
from shims.host_build import KERNELS, HostBuilder

_WHAT = re.compile(
    r"WRONG RESULT|SIMT ERROR: [^(]*|SUMMARY: \w+: [\w-]+(?: race)?|runtime error: .*"
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Launches of the real kernels, compared with NumPy; those for ThreadSanitizer are few."""
    require("compiler")
    folder = tmp_path_factory.mktemp("recordings")
    full = record_corpus(HostBuilder(folder), folder / "full.bin")
    small = record_corpus(HostBuilder(folder), folder / "small.bin", small=True)
    return {"plain": full, "asan": full, "tsan": small}


def run(program: Path, recording: Path, job: str) -> str:
    """Replay; what was caught, or nothing."""
    seeds = ["0", "5", "6"] if job == "plain" else ["0"]
    command = [str(program), str(recording), *seeds]
    if job == "tsan" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    found = _WHAT.search(done.stdout + done.stderr)
    return found[0].strip() if found else f"exit code {done.returncode}"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.function(spec.source))
def test_the_real_kernels_pass(spec: object, recordings: dict[str, Path], tmp_path: Path) -> None:
    builder = HostBuilder(tmp_path)
    assert run(builder.replay(spec), recordings["plain"], "plain") == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(
    mutant: Mutant,
    recordings: dict[str, Path],
    tmp_path: Path,
    caught: Callable[[str, str, str], None],
) -> None:
    text = (KERNELS / f"{mutant.spec.source}.cu").read_text()
    assert mutant.old in text, "the source has changed; write the mutant anew"
    mutated = tmp_path / "mutated.cu"
    mutated.write_text(text.replace(mutant.old, mutant.new, 1))
    builder = HostBuilder(tmp_path, {mutant.spec.source: mutated})
    found = run(builder.replay(mutant.spec, mutant.by), recordings[mutant.by], mutant.by)
    assert found, f"{mutant.name}: survived {mutant.by}"
    caught(mutant.spec.source, mutant.name, f"{mutant.by}: {found}")
