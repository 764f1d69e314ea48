"""Bundles that the export tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amlr.errors import BackendUnavailableError
from amlr.export.cli import export_command
from amlr.kernels.nvrtc import load_nvrtc
from once import once
from requirements import require


@pytest.fixture(params=["bert-shapes", "bert-wider", "mpnet"])
def case(request: pytest.FixtureRequest) -> Any:
    """A tiny model's graphs, recognised and written again."""
    from fused_case import tiny_case

    return tiny_case(request.param)


@pytest.fixture(scope="session")
def cuda_plan(tiny_plan: Path, shared: Callable[[str], Path]) -> Path:
    """The tiny bundle with its compiled CUDA decoders; read-only, shared by the whole run."""
    try:
        load_nvrtc()
    except BackendUnavailableError as error:
        require("nvrtc", found=False, reason=str(error))

    def make(plan: Path) -> None:
        words = ["--from", tiny_plan, "--out", plan, "--target", "cuda"]
        result = CliRunner().invoke(export_command, [str(word) for word in words])
        assert result.exit_code == 0, result.output

    return once(shared("cuda") / "cuda.plan", make)
