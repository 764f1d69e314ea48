"""What is measured of one engine on a CPU: answers and their time, tolerance, a picture's worth."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import ExportError, ParityError
from amlr.export.parity import Answer, decoded_answers
from amlr.export.steps import counted
from amlr.runtime.engine import Engine
from amlr.runtime.golden import check_golden
from amlr.runtime.results import Post

WARM_UP = 32
# Share of all posts with a picture whose entities may change for want of it.
BUDGET = 0.005
SAFETY = 2.0
# A post without any other answer has an endless margin, which JSON cannot hold.
_LARGEST_MARGIN = 1e6
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timed:
    """Answers of a CPU variant, and what they cost on one thread.

    Attributes:
        answers: To each post.
        cold_ms: CPU milliseconds a post from text and picture file to raw scores.
        hit_ms: The same from text to entities, with the pictures encoded before.
    """

    answers: list[Answer]
    cold_ms: float
    hit_ms: float


def time_answers(engine: Engine, posts: Sequence[Post]) -> Timed:
    """Run an engine over posts, once without their pictures encoded and once with."""
    # Compiling, and the first visits of shapes, are paid once in a process's life.
    list(engine.pipeline.score(posts[:WARM_UP]))
    engine.pipeline.images.reset()
    start = time.process_time()
    scored = list(counted(engine.pipeline.score(posts)))
    middle = time.process_time()
    list(counted(engine.tag_batch(posts)))
    end = time.process_time()
    per_post = 1e3 / max(1, len(posts))
    return Timed(
        answers=decoded_answers(engine, scored),
        cold_ms=(middle - start) * per_post,
        hit_ms=(end - middle) * per_post,
    )


def golden_tolerance(engine: Engine, precision: str) -> float:
    """Tolerance at load: what the golden posts need here, with room for another CPU.

    Raises:
        ExportError: No tolerance is enough.
    """
    tolerance = 0.01
    while tolerance < 1e3:
        try:
            check_golden(engine.pipeline, tolerance, entities=False)
            return 2 * tolerance
        except ParityError:
            tolerance *= 1.5
    raise ExportError(f"the {precision} variant is off by more than any tolerance")


def fit_margin(
    margins: Doubles, changed: Bools, other_margins: Doubles, other_changed: Bools
) -> dict[str, Any]:
    """Choose the smallest margin whose changes stay within the budget, and try it on other posts.

    Args:
        margins: Margin of each tuning post's answer without its picture.
        changed: Whether the picture changes that answer.
        other_margins: Margins of the other posts.
        other_changed: Whether the picture changes their answers.

    Returns:
        Margin, budget, and for the other posts their number, the share whose picture is left out
        and how many of those change. Empty where no post has a picture.
    """
    if not len(margins) or not len(other_margins):
        return {}
    margins = np.minimum(margins, _LARGEST_MARGIN)
    other_margins = np.minimum(other_margins, _LARGEST_MARGIN)
    order = np.argsort(-margins)
    spent = np.cumsum(changed[order])
    within = np.flatnonzero(spent <= BUDGET * len(margins))
    # Up to and including the last post within the budget; all its equals are in or out together.
    least = float(margins[order][within[-1]]) if len(within) else float(margins.max())
    # A few hundred posts do not show the rare large change; other posts have larger ones.
    margin = SAFETY * least
    skipped = other_margins > margin
    return {
        "margin": margin,
        "budget": BUDGET,
        "posts": len(other_margins),
        "skipped": round(float(skipped.mean()), 4),
        "changed": int(other_changed[skipped].sum()),
    }
