"""From which margin on the text alone decides."""

from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# Share of all posts with a picture whose entities may change for want of it.
BUDGET = 0.005
SAFETY = 2.0
# A post without any other answer has an endless margin, which JSON cannot hold.
_MOST = 1e6


def fit_margin(
    margins: Doubles, changed: Bools, proof_margins: Doubles, proof_changed: Bools
) -> dict[str, Any]:
    """Choose the smallest margin whose changes stay within the budget, and try it on other posts.

    Args:
        margins: Margin of each tuning post's answer without its picture.
        changed: Whether the picture changes that answer.
        proof_margins: The same of other posts.
        proof_changed: The same.

    Returns:
        Margin, budget, and for the other posts their number, the share whose picture is left out
        and how many of those change. Empty where no post has a picture.
    """
    if not len(margins) or not len(proof_margins):
        return {}
    margins, proof_margins = np.minimum(margins, _MOST), np.minimum(proof_margins, _MOST)
    order = np.argsort(-margins)
    spent = np.cumsum(changed[order])
    within = np.flatnonzero(spent <= BUDGET * len(margins))
    # Up to and including the last post within the budget; all its equals are in or out together.
    found = float(margins[order][within[-1]]) if len(within) else float(margins.max())
    # A few hundred posts do not show the rare large change; other posts have larger ones.
    margin = SAFETY * found
    skipped = proof_margins > margin
    return {
        "margin": margin,
        "budget": BUDGET,
        "posts": len(proof_margins),
        "skipped": round(float(skipped.mean()), 4),
        "changed": int(proof_changed[skipped].sum()),
    }
