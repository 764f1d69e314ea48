"""Expected time of work: a table measured at warm-up, corrected by what is measured in service."""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# Characters of a subword, specials aside; only a first guess, the correction takes up the rest.
CHARS_PER_TOKEN = 4.0
_SPECIAL_TOKENS = 2
# Weight of one batch in the running correction: about the last twenty batches count.
_MEMORY = 0.1
_CORRECTION_RANGE = (0.2, 20.0)


def estimate_tokens(text: str) -> int:
    """Tokens of a text without tokenizing it: cheap enough for the event loop."""
    return _SPECIAL_TOKENS + round(len(text) / CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """Seconds for texts of one length.

    Attributes:
        tokens: Estimated tokens of the text.
        single_s: One post alone.
        full_s: A full batch while every worker is busy.
    """

    tokens: int
    single_s: float
    full_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Measured costs of one engine tier with one number of workers.

    Attributes:
        rows: By length, shortest first.
        image_s: What a new picture adds while every worker is busy.
        batch_posts: Posts of the full batches that were measured.
        workers: Workers that were busy at the same time.
        provider: Tier that was measured.
        precision: Its precision.
    """

    rows: tuple[CostRow, ...]
    image_s: float
    batch_posts: int
    workers: int
    provider: str = "unknown"
    precision: str = "unknown"

    def post_s(self, tokens: int, *, has_image: bool) -> float:
        """Time one more post adds to the drain of a busy server."""
        full = _interpolate([(row.tokens, row.full_s) for row in self.rows], tokens)
        share = full / (self.batch_posts * self.workers)
        return share + (self.image_s / self.workers if has_image else 0.0)

    def batch_s(self, tokens: Sequence[int], images: int) -> float:
        """Time of one batch while every worker is busy."""
        if not tokens:
            return 0.0
        mean = sum(tokens) / len(tokens)
        single = _interpolate([(row.tokens, row.single_s) for row in self.rows], mean)
        full = _interpolate([(row.tokens, row.full_s) for row in self.rows], mean)
        share = (len(tokens) - 1) / max(1, self.batch_posts - 1)
        return single + max(0.0, full - single) * share + images * self.image_s


# Used until the warm-up has measured: admits everything but the absurd.
UNMEASURED = CostTable(
    rows=(CostRow(tokens=1, single_s=0.001, full_s=0.004),),
    image_s=0.005,
    batch_posts=8,
    workers=1,
)


class CostModel:
    """A table with a running correction; safe to use from several threads."""

    def __init__(self, table: CostTable = UNMEASURED) -> None:
        """Start without a correction."""
        self.table = table
        self._correction = 1.0
        self._spread = 0.0
        self._lock = threading.Lock()

    @property
    def correction(self) -> float:
        """Measured over tabulated time, lately."""
        return self._correction

    @property
    def cautious(self) -> float:
        """The correction on a bad day: its mean and twice its usual deviation, as TCP does."""
        return self._correction + 2.0 * self._spread

    def batch_s(self, tokens: Sequence[int], images: int) -> float:
        """Time of a batch that is rarely exceeded."""
        return self.cautious * self.table.batch_s(tokens, images)

    def observe(self, tokens: Sequence[int], images: int, seconds: float) -> None:
        """Learn from a batch that was computed."""
        expected = self.table.batch_s(tokens, images)
        if expected <= 0:
            return
        low, high = _CORRECTION_RANGE
        ratio = min(high, max(low, seconds / expected))
        with self._lock:
            self._spread += _MEMORY * (abs(ratio - self._correction) - self._spread)
            self._correction += _MEMORY * (ratio - self._correction)


def _interpolate(points: list[tuple[int, float]], x: float) -> float:
    """Straight lines between points; beyond the last one in proportion to its length."""
    if x >= points[-1][0]:
        return points[-1][1] * max(1.0, x / points[-1][0])
    index = bisect_left([p[0] for p in points], x)
    if index == 0:
        return points[0][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
