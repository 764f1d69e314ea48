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
    if weight == 0:
        return Units(offsets, start, end, _class_gains(logits, bias))
    if weight < 0:
        raise ShapeError(f"weight must not be negative, got {weight}; tune it on dev data")
    if word_offsets is None or word_emissions_wy is None:
        raise ShapeError("weight > 0 needs word_offsets and word_emissions_wy; pass them or w = 0")
    if len(labels) != logits.shape[1] - 1:
        raise ShapeError(
            f"unit_logits_uc has {logits.shape[1] - 1} classes, labels names {len(labels)}"
        )
    emissions = as_scores("word_emissions_wy", word_emissions_wy, (None, len(tags)))
    bounds = check_offsets("word_offsets", word_offsets, len(emissions))
    if bounds.shape != offsets.shape:
        raise ShapeError(
            f"word_offsets must have {len(offsets)} entries like post_offsets, got {len(bounds)}"
        )
    if (end >= np.diff(bounds).repeat(np.diff(offsets))).any():
        raise ShapeError("a unit ends past its post's last word; word_offsets counts words")
    return add_scores(
        post_offsets=offsets,
        start_u=start,
        end_u=end,
        unit_logits_uc=logits,
        bias=bias,
        weight=weight,
        word_offsets=bounds,
        word_emissions_wy=emissions,
        tags=tags,
        labels=labels,
        max_entity_words=max_entity_words,
    )


def add_scores(
    *,
    post_offsets: AnyInts,
    start_u: AnyInts,
    end_u: AnyInts,
    unit_logits_uc: Floats,
    bias: float,
    weight: float,
    word_offsets: AnyInts,
    word_emissions_wy: Floats,
    tags: Sequence[str],
    labels: Sequence[str],
    max_entity_words: int,
) -> Units:
    """As `joint_scores` of what is known to be right; only the sums are checked.

    Raises:
        ShapeError: A tag is missing, or a sum is NaN or +inf.
    """
    scores = _class_gains(unit_logits_uc, bias)
    if weight == 0:
        return Units.sorted(post_offsets, start_u, end_u, scores)
    extra_u = end_u - start_u
    words_b = word_offsets[1:] - word_offsets[:-1]
    # No run is longer than its post.
    most = min(max_entity_words, int(words_b.max(initial=0)))
    longest = max(most, int(extra_u.max(initial=0)) + 1)
    last_word_u = word_offsets[:-1].repeat(post_offsets[1:] - post_offsets[:-1]) + end_u
    runs = lay_out_runs(word_offsets, last_word_u, extra_u, longest, most)
    sums_wlc = _run_sums(word_emissions_wy, _tag_columns(tuple(tags), tuple(labels)), longest)
    # The table of sums becomes the table of scores in place: fresh memory costs more.
    table = sums_wlc.reshape(-1, scores.shape[1])
    table *= np.float32(weight)
    scores += table.take(runs.unit_cell_v, axis=0)
    table -= np.float32(bias)
    table[runs.unit_cell_v] = scores
    return Units.sorted(
        runs.post_offsets,
        runs.start_u,
        runs.end_u,
        table.take(runs.cell_u, axis=0),
        runs.has_unit_u,
    )


def _class_gains(logits_uc: Floats, bias: float) -> Floats:
    """What each class gains over "none", less the bias, (U, C)."""
    gains: Floats = logits_uc[:, 1:] - logits_uc[:, :1]
    gains -= np.float32(bias)
    return gains


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


def _run_sums(emissions_wy: Floats, columns: tuple[int, Indices, Indices], longest: int) -> Floats:
    """S of each run of at most L words, by its last word, longest first; 0 before the first word.

    Returns:
        Shape (W, L, C).
    """
    outside, begin, inside = columns
    base = emissions_wy[:, outside, None]
    inside_wc = emissions_wy.take(inside, axis=1) - base
    words, classes = inside_wc.shape
    sums = np.zeros((words, longest, classes), np.float32)
    if longest:
        np.subtract(emissions_wy.take(begin, axis=1), base, out=sums[:, -1])
    for extra in range(1, min(longest, words)):
        # The run that is one word shorter and ends one word earlier, then this word's tag.
        slot = longest - 1 - extra
        np.add(sums[extra - 1 : -1, slot + 1], inside_wc[extra:], out=sums[extra:, slot])
    return sums


@dataclass(frozen=True, slots=True, eq=False)
class RunLayout:
    """Units and the runs of words between them, sorted by (post, end, start): U rows of V units.

    Cells are of a flat table of (last word over all posts, L runs that end there, longest first).

    Attributes:
        post_offsets: Rows of each post, (B+1,).
        start_u: First word within the post, (U,) int32.
        end_u: Last word, inclusive, (U,) int32.
        has_unit_u: False for a run that no unit covers, (U,).
        cell_u: Cell of each row, (U,).
        unit_cell_v: Cell of each unit as they were given, (V,).
    """

    post_offsets: AnyInts
    start_u: Ints32
    end_u: Ints32
    has_unit_u: Bools
    cell_u: AnyInts
    unit_cell_v: AnyInts


def lay_out_runs(
    bounds: AnyInts, last_word_v: AnyInts, extra_v: AnyInts, longest: int, max_entity_words: int
) -> RunLayout:
    """Where the units and every run of at most `max_entity_words` words without a unit come.

    Args:
        bounds: Words of post b are bounds[b]:bounds[b+1], shape (B+1,).
        last_word_v: Last word of each unit, counted over all posts, (V,).
        extra_v: Words of each unit less one, (V,).
        longest: Longest unit or run in words, L.
        max_entity_words: Longest run without a unit.
    """
    words = int(bounds[-1])
    extra = np.arange(longest - 1, -1, -1, dtype=np.int32)
    end_w = np.arange(words, dtype=np.int32)
    end_w -= bounds[:-1].astype(np.int32).repeat(bounds[1:] - bounds[:-1])
    start_wl = end_w[:, None] - extra
    unit_cell = last_word_v * longest + (longest - 1 - extra_v)
    has_unit = np.zeros(words * longest, np.bool_)
    has_unit[unit_cell] = True
    used = start_wl >= 0
    used &= extra < max_entity_words
    used |= has_unit.reshape(used.shape)
    cell = np.flatnonzero(used)
    # Rows come by their last word.
    word = cell // longest
    return RunLayout(
        word.searchsorted(bounds),
        start_wl.take(cell),
        end_w.take(word),
        has_unit.take(cell),
        cell,
        unit_cell,
    )
