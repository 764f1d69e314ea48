"""Padded arrays of a batch, for peers that take all posts at once; needs no PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.inputs import ModelInput, ModelShape, block_states


def padded_feed(
    inputs: Sequence[ModelInput], shape: ModelShape, *, steps: int | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Ids, mask and word shapes padded to the longest input, or to `steps` where that is more."""
    longest = max(max(item.steps for item in inputs), steps or 0, shape.scales)
    ids = np.full((len(inputs), longest), shape.pad_id, np.int64)
    mask, shapes = np.zeros_like(ids), np.zeros_like(ids)
    for row, item in enumerate(inputs):
        ids[row, : item.steps] = item.window.input_ids_t
        mask[row, : item.steps] = 1
        shapes[row, : item.steps] = item.window.shape_ids_t
    feed = {"input_ids": ids, "attention_mask": mask}
    return feed | {"shape_ids": shapes} if shape.shapes else feed


def stack_pixels(inputs: Sequence[ModelInput]) -> npt.NDArray[np.float32]:
    """Pixels of every post, (B, 3, H, W)."""
    return np.stack([item.pixels_chw for item in inputs if item.pixels_chw is not None])


def hit_regions(
    inputs: Sequence[ModelInput], encode: Callable[[npt.NDArray[np.float32]], list[Any]]
) -> list[Any]:
    """Regions of every post's picture: those at hand, or encoded now, off the clock."""
    return [
        item.regions
        if item.regions is not None or item.pixels_chw is None
        else encode(item.pixels_chw[None])[0]
        for item in inputs
    ]


def padded_states(
    inputs: Sequence[ModelInput], shape: ModelShape, *, steps: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Hidden states (B, T, D), padded with zeros, and regions (B, P, D) for the block alone."""
    states = [block_states(item, shape) for item in inputs]
    longest = max(max(len(hidden) for hidden, _ in states), steps, shape.scales)
    hidden_btd = np.zeros((len(inputs), longest, shape.width), np.float32)
    for row, (hidden, _) in enumerate(states):
        hidden_btd[row, : len(hidden)] = hidden
    return hidden_btd, np.stack([regions for _, regions in states])
