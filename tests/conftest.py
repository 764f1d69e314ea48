"""Fixtures that several rooms share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports an engine library: it keeps them from reporting home.
import amlr  # noqa: F401

# Speed is measured elsewhere; a busy machine must not fail a property.
settings.register_profile("amlr", deadline=None)
settings.load_profile("amlr")


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


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported bundle; read-only, shared by the whole session.

    `AMLR_TINY_PLAN` names one that was made elsewhere, where there is no PyTorch to make it.
    """
    made = os.environ.get("AMLR_TINY_PLAN")
    if made:
        return Path(made)
    from tiny import tiny_bundle

    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.plan")


@pytest.fixture(scope="session")
def ladder_plan(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with its CPU variants; read-only, shared by the whole session."""
    from tiny_ladder import tiny_ladder, write_posts

    folder = tmp_path_factory.mktemp("ladder")
    return tiny_ladder(tiny_plan, folder / "ladder.plan", calib=write_posts(folder, images=12))


@pytest.fixture(scope="session")
def tiny_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `tiny_plan`; read-only, shared by the whole session."""
    from amlr.training.checkpoint import save_checkpoint
    from tiny import tiny_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_checkpoint(path, tiny_checkpoint())
    return path
