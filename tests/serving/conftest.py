"""Servers that the serving tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from amlr.runtime import Engine
from live_server import LiveServer


@pytest.fixture(scope="session")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    """The real engine on a tiny bundle."""
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[LiveServer]:
    """A server of it with default settings."""
    with LiveServer(engine) as running:
        yield running
