"""How near an error comes to changing answers: each post's lead against what float16 moves it.

Whether an entity changes on a few hundred posts is luck: the error is rounding noise, and a post
changes if its lead happens to be smaller. So the search also compares sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amlr.export.parity import Key
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.windows import PostScores

Doubles = npt.NDArray[np.float64]
# Posts that are near: their leads tell how many posts have a lead near zero.
_NEAR_SHARE = 0.05
_NEAR_LEAST = 5
NEAREST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Leads of the eager answers against their errors.

    Attributes:
        error: Root mean square, over posts, of how far the lead moved.
        closest: The smallest lead.
        times: The smallest ratio, over posts, of the lead to its own error or to `error`, whichever
            is larger; 0 where an answer changed.
        expected: Share of posts whose answer is expected to change: how many posts have a lead near
            zero, times how far the error reaches. An estimate, not a bound.
        nearest: Posts with the smallest leads, smallest first.
    """

    error: float = 0.0
    closest: float = math.inf
    times: float = math.inf
    expected: float = 0.0
    nearest: tuple[int, ...] = ()


def leads(posts: Sequence[PostScores | None], bundle: Bundle) -> Doubles:
    """Score of each answer minus the best other answer's; infinite without scores or another."""
    found = np.full(len(posts), np.inf)
    rows = [row for row, post in enumerate(posts) if post is not None]
    # One by one: a batch is laid out as long as its longest post.
    for row in rows:
        post = posts[row]
        if post is not None and len(post.encoded.word_spans_n2):
            found[row] = Decoder.of(bundle).margins([post])[0]
    return found


def compare_leads(
    eager: Doubles,
    other: Doubles,
    before: Sequence[frozenset[Key]],
    after: Sequence[frozenset[Key]],
) -> Lead:
    """Leads of the eager model's answers against those of another's.

    Args:
        eager: From `leads`.
        other: Of the other model, for its own answers.
        before: The eager model's entities.
        after: The other model's. Where they differ, the eager answer is now behind.
    """
    changed = np.array([a != b for a, b in zip(before, after, strict=True)], np.bool_)
    known = np.isfinite(eager) & np.isfinite(other)
    if not known.any():
        return Lead()
    lead = eager[known]
    moved = np.abs(np.where(changed, -other, other)[known] - lead)
    error = float(np.sqrt(np.mean(moved**2)))
    size = np.maximum(moved, max(error, np.finfo(np.float64).tiny))
    near = min(len(lead), max(_NEAR_LEAST, math.ceil(_NEAR_SHARE * len(lead))))
    reach = max(float(np.sort(lead)[near - 1]), np.finfo(np.float64).tiny)
    # An error is as often one way as the other: E max(0, e) = s / sqrt(2 pi) for a normal one.
    expected = near / (len(eager) * reach) * error / math.sqrt(2 * math.pi)
    return Lead(
        error=error,
        closest=float(lead.min()),
        times=0.0 if changed.any() else float((lead / size).min()),
        expected=min(1.0, expected),
        nearest=tuple(np.argsort(np.where(known, eager, np.inf), kind="stable")[:NEAREST].tolist()),
    )
