"""What a batch costs on one core, by length, size and pictures: measured once, then read."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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

    def _at(self, tokens: float, batch: float) -> list[float]:
        """By state; straight lines between grid points, past the ends in proportion."""
        row, rest = _place(self.tokens, tokens)
        column, part = _place(self.batches, batch)
        corners = self.seconds[:, row : row + 2, column : column + 2]
        seconds = corners @ np.array([1 - part, part]) @ np.array([1 - rest, rest])
        by_state: list[float] = np.maximum(1e-9, seconds).tolist()
        return by_state


def _place(points: Sequence[int], x: float) -> tuple[int, float]:
    """Interval of the grid and the place in it; beyond the last point the last line goes on."""
    index = min(max(bisect_right(points, x) - 1, 0), len(points) - 2)
    low, high = points[index], points[index + 1]
    return index, max(0.0, (x - low) / (high - low))
