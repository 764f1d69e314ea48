"""Joint scores: unit logits and token emissions of the same words, added into one set of units.

Shape letters: B posts, U units, W words of all posts, C entity classes, Y tags.

Everything is float32 and added in one fixed order, which does not depend on other posts:

    S(unit, c) = (em[s, B-c] - em[s, O]) + (em[s+1, I-c] - em[s+1, O]) + ...     left to right
    g(unit, c) = ((z_c - z_none) - b) + w * S(unit, c)

Runs of words without a unit (their subwords exceed the largest scale) score w * S - b.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.units import Units, check_unit_table
from amlr.kernels.validation import Floats, Ints, as_scores


def joint_scores(
    *,
    post_offsets: npt.ArrayLike,
    start_u: npt.ArrayLike,
    end_u: npt.ArrayLike,
    unit_logits_uc: npt.ArrayLike,
    bias: float,
    weight: float = 0.0,
    word_offsets: npt.ArrayLike | None = None,
    word_emissions_wy: npt.ArrayLike | None = None,
    tags: Sequence[str] = (),
    labels: Sequence[str] = (),
    max_entity_words: int = 10,
) -> Units:
    """Build the units that `segmental_decode` reads.

    Args:
        post_offsets: Units of post b are post_offsets[b]:post_offsets[b+1], shape (B+1,).
        start_u: First word of each unit within its post, shape (U,).
        end_u: Last word, inclusive, sorted within a post, shape (U,).
        unit_logits_uc: Raw logits, "none" first, shape (U, 1+C).
        bias: b, taken off every entity.
        weight: w of the emissions; 0 needs no emissions and adds no runs.
        word_offsets: Words of post b are word_offsets[b]:word_offsets[b+1], shape (B+1,).
        word_emissions_wy: Token-head scores at each word's first subword, shape (W, Y).
        tags: Names of the Y tags; "O", "B-X" and "I-X" are found by name, others are ignored.
        labels: Names of the C classes in the order of the logits.
        max_entity_words: Longest run of words without a unit that may still be an entity.

    Returns:
        Units sorted by (post, end, start); with w > 0 also every run of at most `max_entity_words`
        words that has no unit, marked False in `has_logits_u`.

    Raises:
        ShapeError: Shapes disagree, a tag is missing, or a score is NaN or +inf.
    """
    logits = as_scores("unit_logits_uc", unit_logits_uc, (None, None))
    if logits.shape[1] < 2:
        raise ShapeError(f"unit_logits_uc must have 'none' and C classes, got {logits.shape}")
    offsets, start, end = check_unit_table(post_offsets, start_u, end_u, len(logits))
    b, w = np.float32(bias), np.float32(weight)
    scores = (logits[:, 1:] - logits[:, :1]) - b
    if weight == 0:
        return Units(offsets, start, end, scores)
    if weight < 0:
        raise ShapeError(f"weight must not be negative, got {weight}; tune it on dev data")
    if word_offsets is None or word_emissions_wy is None:
        raise ShapeError("weight > 0 needs word_offsets and word_emissions_wy; pass them or w = 0")
    begin, inside = _tag_gains(word_emissions_wy, tags, labels, logits.shape[1] - 1)
    bounds = np.asarray(word_offsets)
    if (
        bounds.shape != offsets.shape
        or bounds.dtype.kind not in "iu"
        or bounds[0] != 0
        or bounds[-1] != len(begin)
        or np.any(np.diff(bounds) < 0)
    ):
        raise ShapeError(
            f"word_offsets must rise from 0 to {len(begin)} (rows of word_emissions_wy) and have "
            f"{len(offsets)} entries like post_offsets, got shape {bounds.shape}"
        )
    post_u = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if np.any(end >= np.diff(bounds)[post_u]):
        raise ShapeError("a unit ends past its post's last word; word_offsets counts words")
    unit_wl, first_word = _all_runs(bounds, bounds[post_u] + start, end - start, max_entity_words)
    return _merge(
        unit_wl, first_word, bounds, scores, _run_sums(begin, inside, unit_wl.shape[1]), b, w
    )


def _tag_gains(
    emissions: npt.ArrayLike, tags: Sequence[str], labels: Sequence[str], classes: int
) -> tuple[Floats, Floats]:
    """Gain of B-c and of I-c over O at each word, each (W, C)."""
    if len(labels) != classes:
        raise ShapeError(f"unit_logits_uc has {classes} classes, labels names {len(labels)}")
    em = as_scores("word_emissions_wy", emissions, (None, len(tags)))
    column = {tag: y for y, tag in enumerate(tags)}
    needed = ["O", *(f"{kind}-{label}" for label in labels for kind in "BI")]
    missing = [tag for tag in needed if tag not in column]
    if missing:
        raise ShapeError(f"tags lack {missing}; joint scores need O, B-X and I-X for every label")
    outside = em[:, column["O"], None]
    begin = em[:, [column[f"B-{label}"] for label in labels]] - outside
    inside = em[:, [column[f"I-{label}"] for label in labels]] - outside
    return begin, inside


def _run_sums(begin: Floats, inside: Floats, longest: int) -> Floats:
    """S of the run of l+1 words that starts at word w, shape (W, L, C); 0 past the last word."""
    words, classes = begin.shape
    sums = np.zeros((words, longest, classes), np.float32)
    if longest:
        sums[:, 0] = begin
    for extra in range(1, min(longest, words)):
        np.add(sums[: words - extra, extra - 1], inside[extra:], out=sums[: words - extra, extra])
    return sums


def _all_runs(
    bounds: Ints, first_word_u: Ints, extra_u: Ints, max_entity_words: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each last word and each length, longest first: unit index, -1 run, -2 impossible.

    Returns:
        Table (W, L) and the first word of each cell's run, both counted over all posts.
    """
    words = int(bounds[-1])
    longest = max(max_entity_words, int(extra_u.max(initial=0)) + 1)
    extra = np.arange(longest - 1, -1, -1)
    first_word = np.arange(words)[:, None] - extra
    post_start = np.repeat(bounds[:-1], np.diff(bounds))[:, None]
    table = np.where((first_word >= post_start) & (extra < max_entity_words), -1, -2)
    table[first_word_u + extra_u, longest - 1 - extra_u] = np.arange(len(extra_u))
    return table, first_word


def _merge(
    table: npt.NDArray[np.intp],
    first_word: npt.NDArray[np.intp],
    bounds: Ints,
    scores: Floats,
    sums_wlc: Floats,
    b: np.float32,
    w: np.float32,
) -> Units:
    """Units of all cells in use, in (post, end, start) order."""
    longest = table.shape[1]
    last, slot = np.nonzero(table > -2)
    unit, first = table[last, slot], first_word[last, slot]
    has_logits = unit >= 0
    emission = w * sums_wlc[first, longest - 1 - slot]
    merged = emission - b
    merged[has_logits] = scores[unit[has_logits]] + emission[has_logits]
    post_starts = np.repeat(bounds[:-1], np.diff(bounds))[last]
    return Units(
        np.searchsorted(last, bounds).astype(np.int64),
        (first - post_starts).astype(np.int32),
        (last - post_starts).astype(np.int32),
        merged,
        has_logits,
    )
