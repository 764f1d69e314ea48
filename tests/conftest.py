"""Fixtures that several rooms share."""

from pathlib import Path

import pytest
import torch

from amlr.training.checkpoint import save_checkpoint
from tiny import tiny_bundle, tiny_checkpoint

# Tiny tensors are slower on many threads, and other tests may run beside this one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported bundle; read-only, shared by the whole run."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.plan")


@pytest.fixture(scope="session")
def tiny_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `tiny_plan`; read-only."""
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_checkpoint(path, tiny_checkpoint())
    return path
