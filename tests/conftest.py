"""Fixtures that several rooms share."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports an engine library: it keeps them from reporting home.
import amlr  # noqa: F401
from once import once
from requirements import require
from shims.host_build import HostBuilder

# Speed is measured elsewhere; a busy machine must not fail a property.
settings.register_profile("amlr", deadline=None)
# On CI, Hypothesis draws the same examples in every run. A mutant may survive some of them, so
# each of its runs draws others.
settings.register_profile("mutants", deadline=None, derandomize=False)
settings.load_profile(os.environ.get("AMLR_HYPOTHESIS_PROFILE", "amlr"))


_LOGGERS = [logging.getLogger(name) for name in ("amlr", "uvicorn")]


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """A server in this process, of this test or of the session, sets the logging up for good."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    for logger in _LOGGERS:
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


Shared = Callable[[str], Path]


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Gives folders that all processes of this run share; what is in them is made by `once`."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder in that of the run.
    root = base.parent if hasattr(pytestconfig, "workerinput") else base

    def folder(name: str) -> Path:
        (root / f"shared-{name}").mkdir(exist_ok=True)
        return root / f"shared-{name}"

    return folder


@pytest.fixture(scope="session")
def tiny_plan(shared: Shared) -> Path:
    """A tiny exported bundle; read-only, shared by the whole run.

    `AMLR_TINY_PLAN` names one that was made elsewhere, where there is no PyTorch to make it.
    """
    made = os.environ.get("AMLR_TINY_PLAN")
    if made:
        return Path(made)
    from tiny import tiny_bundle

    return once(shared("bundle") / "tiny.plan", tiny_bundle)


@pytest.fixture(scope="session")
def ladder_plan(tiny_plan: Path, shared: Shared) -> Path:
    """The tiny bundle with its CPU variants; read-only, shared by the whole run."""
    from tiny_ladder import tiny_ladder, write_posts

    def make(plan: Path) -> None:
        tiny_ladder(tiny_plan, plan, calib=write_posts(plan.parent, images=12))

    return once(shared("ladder") / "ladder.plan", make)


@pytest.fixture(scope="session")
def tiny_pt(shared: Shared) -> Path:
    """The checkpoint of `tiny_plan`; read-only, shared by the whole run."""
    from amlr.training.checkpoint import save_checkpoint
    from tiny import tiny_checkpoint

    return once(shared("bundle") / "best.pt", lambda path: save_checkpoint(path, tiny_checkpoint()))


@pytest.fixture(scope="session")
def host_builder(shared: Shared) -> HostBuilder:
    """Builds the real kernels for the host, each once in a run."""
    require("compiler")
    return HostBuilder(shared("kernels"))
