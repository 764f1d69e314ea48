"""What a batch costs on one core, by length, size and pictures: measured once, then read."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError
from amlr.serving.costs import CostRow, CostTable

STATES = ("none", "hit", "cold")
"""No picture; one whose regions are cached; a new one, decoded and encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostGrid:
    """Seconds of a batch of equal posts, on a grid.

    Attributes:
        tokens: Estimated tokens of a text, ascending.
        batches: Posts of a batch, ascending, the first is 1.
        seconds: (states, tokens, batches), states in the order of `STATES`.
        request_s: CPU time of the server around the engine, for one request: HTTP, JSON, queue.
        request_image_s: What a picture in the request adds to that.
        picture_bytes: What one encoded picture takes in the cache.
        provider: Tier that was measured.
        precision: Its precision.
    """

    tokens: tuple[int, ...]
    batches: tuple[int, ...]
    seconds: npt.NDArray[np.float64]
    request_s: float
    request_image_s: float
    picture_bytes: float
    provider: str = "unknown"
    precision: str = "unknown"

    def __post_init__(self) -> None:
        if min(len(self.tokens), len(self.batches)) < 2:
            raise InputError("costs need at least two lengths and two batch sizes")
        expected = (len(STATES), len(self.tokens), len(self.batches))
        if self.seconds.shape != expected or not np.isfinite(self.seconds).all():
            raise InputError(f"costs need finite seconds of shape {expected}")

    def batch_s(self, tokens: Sequence[int], hits: int, cold: int) -> float:
        """Time of one batch.

        Args:
            tokens: Estimated tokens of each post.
            hits: Posts with a known picture.
            cold: Posts with a new one.
        """
        count = len(tokens)
        mean = sum(tokens) / count
        none, hit, new = self._at(mean, count)
        return none + hits * max(0.0, hit - none) / count + cold * max(0.0, new - none) / count

    def post_s(self, tokens: float, state: int, batch: int) -> float:
        """Time of one of `batch` equal posts, the server's part included."""
        picture = self.request_image_s if state else 0.0
        return self._at(tokens, batch)[state] / batch + self.request_s + picture

    def server_table(self, batch_posts: int, workers: int) -> CostTable:
        """The coarser table that the server itself would measure, for its admission."""
        shortest = self.tokens[0]
        none, _, cold = self._at(shortest, batch_posts)
        rows = [
            CostRow(
                tokens=tokens,
                single_s=self._at(tokens, 1)[0],
                full_s=max(self._at(tokens, 1)[0], self._at(tokens, batch_posts)[0]),
            )
            for tokens in self.tokens
        ]
        return CostTable(
            rows=tuple(rows),
            image_s=max(1e-6, (cold - none) / batch_posts),
            batch_posts=batch_posts,
            workers=workers,
        )

    def _at(self, tokens: float, batch: float) -> tuple[float, float, float]:
        """Straight lines between grid points; past the ends in proportion."""
        row, rest = _place(self.tokens, tokens)
        column, part = _place(self.batches, batch)
        grid = self.seconds
        values = [
            (
                (1 - rest) * ((1 - part) * cell[row, column] + part * cell[row, column + 1])
                + rest * ((1 - part) * cell[row + 1, column] + part * cell[row + 1, column + 1])
            )
            for cell in grid
        ]
        none, hit, new = (max(1e-9, float(value)) for value in values)
        return none, hit, new

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"seconds": self.seconds.tolist()}


def _place(points: Sequence[int], x: float) -> tuple[int, float]:
    """Interval of the grid and the place in it; beyond the last point the last line goes on."""
    index = min(max(bisect_right(points, x) - 1, 0), len(points) - 2)
    low, high = points[index], points[index + 1]
    return index, max(0.0, (x - low) / (high - low))
