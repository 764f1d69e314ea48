"""Arithmetic the answers need, counted on the eager model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from amlr.benchmarks.inputs import ModelInput, ModelShape
from amlr.benchmarks.peers.base import RESEARCH_STEPS
from amlr.benchmarks.peers.padding import padded_feed
from amlr.training.model import AmlrModel


def _count(function: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function()
    return float(counter.get_total_flops())


def flops_per_post(
    model: AmlrModel, inputs: Sequence[ModelInput], shape: ModelShape
) -> dict[str, float]:
    """Floating-point operations (a multiply-add is two) of one post, averaged.

    Args:
        model: The eager model.
        inputs: A sample of posts.
        shape: The model's shape.

    Returns:
        `text` and `fusion` at exact lengths with only the word-aligned units, `image` once,
        `research_text` and `research_fusion` padded to the paper's length with all units.
    """
    image_size = shape.image_size
    pixels = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        regions = model.image(pixels)
    totals = {"image": _count(lambda: model.image(pixels)) * len(inputs)}
    for item in inputs:
        own = _tensors(item, shape, 0)
        padded = _tensors(item, shape, RESEARCH_STEPS)
        parts = {
            "text": _count(lambda own=own: model.text(**own)),  # type: ignore[misc]
            "fusion": _count(lambda own=own, item=item: _needed(model, own, item, regions)),  # type: ignore[misc]
            "research_text": _count(lambda padded=padded: model.text(**padded)),  # type: ignore[misc]
            "research_fusion": _count(lambda padded=padded: _all(model, padded, regions)),  # type: ignore[misc]
        }
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: value / len(inputs) for name, value in totals.items()}


def _tensors(item: ModelInput, shape: ModelShape, steps: int) -> dict[str, torch.Tensor]:
    feed = padded_feed([item], shape, steps=steps)
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def _hidden(model: AmlrModel, feed: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.zeros(*feed["input_ids"].shape, model.config.width)


def _needed(
    model: AmlrModel, feed: dict[str, torch.Tensor], item: ModelInput, regions: torch.Tensor
) -> None:
    hidden = _hidden(model, feed)[0]
    rows = []
    for scale in range(1, model.config.scales + 1):
        starts = item.units.start_step_u[item.units.scale_u == scale].astype(np.int64)
        rows.append(torch.from_numpy(starts[:, None] + np.arange(scale)))
    units = model.units.select(hidden, rows)[None]
    model.classify(units, model.cross.attend(units, regions))
    model.token_head(hidden)


def _all(model: AmlrModel, feed: dict[str, torch.Tensor], regions: torch.Tensor) -> None:
    hidden = _hidden(model, feed)
    units = model.units(hidden)
    model.classify(units, model.cross.attend(units, regions))
    model.token_head(hidden)
