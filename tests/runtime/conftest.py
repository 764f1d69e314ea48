"""Fixtures of the runtime's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from amlr.runtime import Engine


@pytest.fixture(scope="module")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as loaded:
        yield loaded
