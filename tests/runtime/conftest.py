"""Fixtures of the runtime's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amlr.runtime import Engine
from doubles.device import DoubleDevice
from doubles.tensorrt import TensorRtDouble


@pytest.fixture(scope="module")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture
def machine() -> Iterator[tuple[DoubleDevice, Any, TensorRtDouble]]:
    """A device, its tools and its library, all given back at the end."""
    device = DoubleDevice()
    # Needs onnx, which installations without the export extra lack.
    from doubles.bundle import double_tools

    tools, module = double_tools(device)
    yield device, tools, module
    assert device.live_allocations == 0
    assert device.streams == {}
    assert device.graphs == 0
