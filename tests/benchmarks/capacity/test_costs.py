"""The cost grid, measured in processes of their own."""

from pathlib import Path

import numpy as np
import pytest

from amlr.benchmarks.capacity import measure
from amlr.benchmarks.capacity.measure import EngineChoice, measure_grid
from amlr.errors import AmlrError


def test_an_engine_that_cannot_be_loaded_says_why() -> None:
    choice = EngineChoice(bundle=Path("nowhere.plan"))
    with pytest.raises(AmlrError, match=r"no bundle at nowhere\.plan"):
        measure_grid(choice, [10], 1, 1)


def test_every_kind_of_batch_is_measured(
    tiny_plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "_REPEATS", 2)
    choice = EngineChoice(bundle=tiny_plan, provider="onnxruntime", precision="fp32")
    costs = measure_grid(choice, [10, 60], 4, 1)
    assert costs.tokens == (10, 26, 44, 60)
    assert costs.batches == (1, 4)
    assert costs.seconds.shape == (3, 4, 2)
    assert (costs.seconds > 0).all()
    none, _, cold = costs.seconds.sum(axis=(1, 2))
    assert cold > none  # a new picture is decoded and encoded
    assert costs.request_s > 0
    assert costs.picture_bytes > 0
    assert (costs.provider, costs.precision) == ("onnxruntime-cpu", "fp32")
    assert np.isfinite(costs.post_s(30, 2, 4))
