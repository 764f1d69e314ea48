"""How a batch is cut into runs that the graphs take, and the batches of the warm-up."""

from collections.abc import Sequence

import numpy as np

from amlr.runtime.batching import Batch
from amlr.runtime.device.pool import DeviceImage, HostImage
from amlr.runtime.device.shapes import Sizes
from amlr.runtime.text import TextWindow
from amlr.runtime.units import all_units


def padding_batch(posts: int, tokens: int, sizes: Sizes) -> Batch:
    """Windows of padding."""
    ids = np.full(tokens, sizes.pad_id, np.int64)
    nothing = np.zeros(0, np.int32)
    window = TextWindow(
        input_ids_t=ids,
        shape_ids_t=np.zeros_like(ids),
        first_n=nothing,
        last_n=nothing,
        word_start=0,
    )
    units = [all_units(tokens, 1)] * posts
    return Batch([window] * posts, units, scales=sizes.scales, pad_id=sizes.pad_id)


def part_of(batch: Batch, run: slice) -> Batch:
    """The windows of one run."""
    return Batch(batch.windows[run], batch.units[run], scales=batch.scales, pad_id=batch.pad_id)


def split_runs(
    images: Sequence[DeviceImage | HostImage | None], posts: int, passing: int
) -> list[slice]:
    """Split a batch by windows and by pictures that must visit a slot."""
    runs: list[slice] = []
    start = 0
    visiting: set[int] = set()
    for index, image in enumerate(images):
        is_new = isinstance(image, HostImage) and id(image) not in visiting
        if index - start == posts or (is_new and len(visiting) == passing and index > start):
            runs.append(slice(start, index))
            start, visiting = index, set()
        if isinstance(image, HostImage):
            visiting.add(id(image))
    return [*runs, slice(start, len(images))]
