"""A small share of certified answers, computed again: do the radii hold for what users send?"""

import threading
from collections.abc import Iterable

import numpy as np

from amlr.runtime.decode import Decoder
from amlr.runtime.radii import Radii
from amlr.runtime.windows import PostScores

# Two float32 engines may decide a post differently whose answers lie closer than this.
UNDECIDABLE = 1e-5
# More posts beyond their radius than this, and the radii are not those of these posts.
MOST_BEYOND = 0.02
_LEAST_BEYOND = 3


class Sentinel:
    """Chooses which answers are computed again, compares, and counts."""

    def __init__(self, share: float) -> None:
        """Check a share of all answers, 0..1, evenly spread."""
        self._share, self._due = share, 0.0
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self._checked = self._changed = self._beyond = 0

    def counts(self) -> dict[str, int]:
        """Answers `checked`, those that `changed`, and those with an error `beyond` its radius."""
        with self._lock:
            return {
                "checked": self._checked,
                "changed": self._changed,
                "beyond": self._beyond,
            }

    def choose(self, rows: Iterable[int]) -> list[int]:
        """Those of some certified posts that are to be computed again."""
        chosen = []
        with self._lock:
            for row in rows:
                self._due += self._share
                if self._due >= 1.0:
                    self._due -= 1.0
                    chosen.append(row)
        return chosen

    def compare(self, low: PostScores, exact: PostScores, radii: Radii, decoder: Decoder) -> str:
        """Compare a certified post with float32.

        Args:
            low: Scores that were certified.
            exact: Scores of the same post in float32.
            radii: What they were certified within.
            decoder: The one that certified them.

        Returns:
            Why the low tier must not serve on, or nothing.
        """
        gains = float(np.abs(low.unit_gains_uc - exact.unit_gains_uc).max(initial=0.0))
        tokens = float(np.abs(low.emissions_ty - exact.emissions_ty).max(initial=0.0))
        before, after = (
            [(entity.start, entity.end, entity.label) for entity in entities]
            for entities in decoder.entities([low, exact])
        )
        is_changed = before != after and bool(decoder.margins([exact])[0] > UNDECIDABLE)
        with self._lock:
            self._checked += 1
            self._beyond += gains > radii.units or tokens > radii.tokens
            self._changed += is_changed
            if is_changed:
                return "a certified answer differs from float32's"
            if self._beyond >= max(_LEAST_BEYOND, MOST_BEYOND * self._checked):
                return f"{self._beyond} of {self._checked} posts have errors beyond the radii"
        return ""
