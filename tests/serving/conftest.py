"""Servers that the serving tests share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from amlr.runtime import Engine
from live_server import LiveServer


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A server or replica started in this process sets the logging up for good."""
    loggers = [logging.getLogger(name) for name in ("amlr", "uvicorn")]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


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
