"""A real Triton server, from the environment that `AMLR_TRITON` names (`make triton`)."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from amlr.errors import BackendUnavailableError
from amlr.runtime import Engine
from amlr.serving.triton.repository import write_repository
from requirements import require
from triton_process import (
    Installation,
    TritonServer,
    find_installation,
)


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The server, or a skip (a failure where `AMLR_REQUIRE` names `triton`)."""
    venv = os.environ.get("AMLR_TRITON")
    has_client = all(importlib.util.find_spec(name) for name in ("tritonclient", "grpc"))
    require("triton", found=has_client, reason="pip install tritonclient[http,grpc]")
    require("triton", found=bool(venv), reason="AMLR_TRITON names no environment; run make triton")
    try:
        return find_installation(Path(str(venv)))
    except BackendUnavailableError as error:
        require("triton", found=False, reason=str(error))
        raise


@pytest.fixture(scope="session")
def repository(
    installation: Installation, tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository of the tiny bundle, as it is written."""
    return write_repository(tiny_plan, tmp_path_factory.mktemp("triton") / "triton")


@pytest.fixture(scope="session")
def triton(installation: Installation, repository: Path) -> Iterator[TritonServer]:
    """The server with the model `amlr`."""
    with TritonServer(installation, repository / "models") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    """The engine called directly."""
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as loaded:
        yield loaded
