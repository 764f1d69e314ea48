"""Every bug injected into the Python of decoding is caught by the test that is named for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mutation.python_mutants import PYTHON_MUTANTS, PythonMutant

TESTS = Path(__file__).parent.parent
PACKAGE = TESTS.parent / "src" / "amlr"
TESTS_FAILED = 1
RUNS = 12


@pytest.fixture(scope="module")
def copied_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as plain files; mutants change one of them at a time."""
    copy = tmp_path_factory.mktemp("mutants") / "src" / "amlr"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run_tests(package: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Run tests on a copy of the package."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / name) for name in names]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(TESTS)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # loading them takes longer than the tests
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant may be as old and as long as the original
        "AMLR_HYPOTHESIS_PROFILE": "mutants",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(package.parent / "hypothesis"),
    }
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
        cwd=TESTS.parent,
    )


def test_the_real_package_passes(copied_package: Path) -> None:
    done = run_tests(copied_package, *sorted({mutant.by for mutant in PYTHON_MUTANTS}))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mutant", PYTHON_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(
    mutant: PythonMutant, copied_package: Path, caught: Callable[[str, str, str], None]
) -> None:
    path = copied_package / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) >= 1, "the source has changed; write the mutant anew"
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    try:
        # Properties draw their examples at random: one run may miss a rare one.
        for _ in range(RUNS):
            done = run_tests(copied_package, mutant.by)
            if done.returncode != 0:
                break
    finally:
        path.write_text(text)
    assert done.returncode == TESTS_FAILED, f"{mutant.name}: survived\n{done.stdout}"
    caught(mutant.file, mutant.name, mutant.by.rpartition("::")[2])
