"""Joint scores: unit logits and token emissions of the same words, added into one set of units.

Shape letters: B posts, U units, W words of all posts, C entity classes, Y tags.

Everything is float32 and added in one fixed order, which does not depend on other posts:

    S(unit, c) = (em[s, B-c] - em[s, O]) + (em[s+1, I-c] - em[s+1, O]) + ...     left to right
    g(unit, c) = ((z_c - z_none) - b) + w * S(unit, c)

Runs of words without a unit (their subwords exceed the largest scale) score w * S - b.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import AnyInts, Bools, Floats, Indices, Ints32
from amlr.kernels.units import Units
from amlr.kernels.validation import as_scores, check_offsets, check_unit_table


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
    bounds = check_offsets("word_offsets", word_offsets, len(begin))
    if bounds.shape != offsets.shape:
        raise ShapeError(
            f"word_offsets must have {len(offsets)} entries like post_offsets, got {len(bounds)}"
        )
    post_u = np.arange(len(offsets) - 1).repeat(offsets[1:] - offsets[:-1])
    words_b = bounds[1:] - bounds[:-1]
    if (end >= words_b[post_u]).any():
        raise ShapeError("a unit ends past its post's last word; word_offsets counts words")
    extra = end - start
    # No run is longer than its post.
    most = min(max_entity_words, int(words_b.max(initial=0)))
    longest = max(most, int(extra.max(initial=0)) + 1)
    sums = _run_sums(begin, inside, longest)
    return _merge(bounds, bounds[post_u] + end, extra, scores, sums, b, w, most)


def _tag_gains(
    emissions: npt.ArrayLike, tags: Sequence[str], labels: Sequence[str], classes: int
) -> tuple[Floats, Floats]:
    """Gain of B-c and of I-c over O at each word, each (W, C)."""
    if len(labels) != classes:
        raise ShapeError(f"unit_logits_uc has {classes} classes, labels names {len(labels)}")
    em = as_scores("word_emissions_wy", emissions, (None, len(tags)))
    outside, begin, inside = _tag_columns(tuple(tags), tuple(labels))
    base = em[:, outside, None]
    return em.take(begin, axis=1) - base, em.take(inside, axis=1) - base


@lru_cache(maxsize=16)
def _tag_columns(tags: tuple[str, ...], labels: tuple[str, ...]) -> tuple[int, Indices, Indices]:
    """Columns of O, of B-X and of I-X for every label."""
    column = {tag: y for y, tag in enumerate(tags)}
    needed = ["O", *(f"{kind}-{label}" for label in labels for kind in "BI")]
    missing = [tag for tag in needed if tag not in column]
    if missing:
        raise ShapeError(f"tags lack {missing}; joint scores need O, B-X and I-X for every label")
    begin, inside = ([column[f"{kind}-{label}"] for label in labels] for kind in "BI")
    return column["O"], np.array(begin, np.intp), np.array(inside, np.intp)


def _run_sums(begin: Floats, inside: Floats, longest: int) -> Floats:
    """S of the run of l+1 words that ends at word w, shape (L, W, C); 0 before the first word."""
    words, classes = begin.shape
    sums = np.zeros((longest, words, classes), np.float32)
    if longest:
        sums[0] = begin
    for extra in range(1, min(longest, words)):
        # The run that is one word shorter and ends one word earlier, then this word's tag.
        np.add(sums[extra - 1, extra - 1 : -1], inside[extra:], out=sums[extra, extra:])
    return sums


def _merge(
    bounds: AnyInts,
    last_word_u: AnyInts,
    extra_u: AnyInts,
    scores: Floats,
    sums_lwc: Floats,
    b: np.float32,
    w: np.float32,
    max_entity_words: int,
) -> Units:
    """Units and runs in one table of (length, last word, class), read out in order.

    The table of sums becomes the table of scores in place, and is read by flat indices: fresh
    memory and masks over several axes cost several times the arithmetic.
    """
    longest, words, classes = sums_lwc.shape
    table = sums_lwc.reshape(-1, classes)
    cell_u = extra_u * words + last_word_u
    table *= w
    own = table.take(cell_u, axis=0)
    np.add(scores, own, out=own)
    table -= b
    table[cell_u] = own

    runs = lay_out_runs(bounds, last_word_u, extra_u, longest, max_entity_words)
    return Units.sorted(
        runs.post_offsets,
        runs.start_u,
        runs.end_u,
        table.take(runs.cell_u, axis=0),
        runs.has_unit_u,
    )


@dataclass(frozen=True, slots=True, eq=False)
class RunLayout:
    """Units and the runs of words between them, sorted by (post, end, start).

    Attributes:
        post_offsets: Rows of each post, (B+1,).
        start_u: First word within the post, (U,) int32.
        end_u: Last word, inclusive, (U,) int32.
        has_unit_u: False for a run that no unit covers, (U,).
        cell_u: Row in a table of (length - 1, last word), flattened, (U,).
    """

    post_offsets: AnyInts
    start_u: Ints32
    end_u: Ints32
    has_unit_u: Bools
    cell_u: AnyInts


def lay_out_runs(
    bounds: AnyInts, last_word_u: AnyInts, extra_u: AnyInts, longest: int, max_entity_words: int
) -> RunLayout:
    """Where the units and every run of at most `max_entity_words` words without a unit come.

    Args:
        bounds: Words of post b are bounds[b]:bounds[b+1], shape (B+1,).
        last_word_u: Last word of each unit, counted over all posts, (U,).
        extra_u: Words of each unit less one, (U,).
        longest: Longest unit or run in words.
        max_entity_words: Longest run without a unit.
    """
    words = int(bounds[-1])
    # For each last word, longest first.
    extra = np.arange(longest - 1, -1, -1)
    every = np.arange(words)
    end_w = every - bounds[:-1].repeat(bounds[1:] - bounds[:-1])
    start_wl = end_w[:, None] - extra
    has_unit = np.zeros((words, longest), np.bool_)
    has_unit[last_word_u, longest - 1 - extra_u] = True
    used = (start_wl >= 0) & (extra < max_entity_words)
    used |= has_unit
    place = np.flatnonzero(used)
    word = place // longest
    # Rows come by their last word.
    return RunLayout(
        word.searchsorted(bounds),
        start_wl.take(place).astype(np.int32),
        end_w.take(word).astype(np.int32),
        has_unit.take(place),
        (every[:, None] + extra * words).take(place),
    )
