"""Marginal probabilities of tags, tag spans and entities (forward-backward, in float64).

Shape letters: B batch, T steps, Y tags, U units, C classes, N words, L longest unit, E spans.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import AnyFloats, Doubles, Floats, Indices
from amlr.kernels.units import Units
from amlr.kernels.validation import Chain, check_chain_values, check_temperature


def log_sum_exp(values: AnyFloats, axis: int) -> Doubles:
    """log(sum(exp(values))) over an axis; -inf where everything is -inf."""
    peak = values.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):
        total: Doubles = np.log(np.exp(values - safe).sum(axis=axis))
    return total + safe.squeeze(axis)


def entity_marginals(units: Units, lengths_b: npt.ArrayLike, *, temperature: float = 1.0) -> Floats:
    """Probability that each unit is a chosen segment of each class.

    The distribution over segmentations is exp(sum of g / temperature), normalised.

    Args:
        units: Scored units of all posts.
        lengths_b: Words of each post, shape (B,).
        temperature: Above 1 flattens the distribution, below 1 sharpens it.

    Returns:
        Probabilities (U, C), float32.

    Raises:
        ShapeError: A unit ends past its post, or the temperature is not positive and finite.
    """
    units.check_lengths(lengths_b)
    every = np.arange(len(units.start_u))
    return segment_marginals(units, every, temperature)


def segment_marginals(units: Units, unit_e: Indices, temperature: float) -> Floats:
    """As `entity_marginals`, of chosen units only.

    Args:
        units: Scored units of all posts, none past its post's end.
        unit_e: Which, (E,).
        temperature: As in `entity_marginals`.

    Returns:
        Probabilities (E, C), float32.

    Raises:
        ShapeError: The temperature is not positive and finite.
    """
    check_temperature(temperature)
    scores = units.scores_uc.astype(np.float64) / temperature
    outside = _outside_shares(units, scores, unit_e)
    if outside is None:
        logs, _ = outside_scores(units, scores, log_sum_exp)
        return np.exp(logs[unit_e, None] + scores[unit_e]).astype(np.float32)
    return (outside[:, None] * np.exp(scores[unit_e])).astype(np.float32)


def _outside_shares(units: Units, scores_uc: Doubles, unit_e: Indices) -> Doubles | None:
    """Share of all segmentations' weight that lies around each of some units, (E,).

    Weights are exponentials of sums, all of them positive, added without logarithms. None where
    they leave float64's range: posts of hundreds of words, or scores in the hundreds.
    """
    if not len(unit_e):
        return np.zeros(0)
    with np.errstate(over="ignore", invalid="ignore"):
        weights_u = np.exp(scores_uc).sum(1)
        if len(units.post_offsets) == 2:
            forward, backward = _weights_of_one(units, weights_u)
            post_e: Indices | int = 0
        else:
            forward, backward = _weights(np.append(weights_u, 0.0).take(units.unit_nlb))
            post_e = np.searchsorted(units.post_offsets, unit_e, side="right") - 1
        total_b = forward[-1]
        # Weights never fall, so the totals are the largest.
        if not (np.isfinite(total_b).all() and np.isfinite(backward[0]).all()):
            return None
    start, end = units.start_u[unit_e], units.end_u[unit_e]
    shares: Doubles = forward[start, post_e] / total_b[post_e] * backward[end + 1, post_e]
    return shares


def _weights(cells_nlb: Doubles) -> tuple[Doubles, Doubles]:
    """Weights of all segmentations of the first 0..N words, and of those after them, (N+1, B)."""
    words, longest, posts = cells_nlb.shape
    # Row L-1+j: the first j words; at 1 the last j words. Units before row 0 weigh nothing.
    sums = np.zeros((longest + words, 2, posts))
    sums[longest - 1] = 1.0
    padded = np.zeros((words + longest, longest, posts))
    padded[:words] = cells_nlb
    size = padded.itemsize * posts
    # The unit of k+1 words from word j on is in row (j+k) L + L-1-k, which is j L + L-1 + k (L-1).
    starting: Doubles = np.ndarray(
        (words, longest, posts),
        padded.dtype,
        padded.data,
        (longest - 1) * size,
        (longest * size, (longest - 1) * size, padded.itemsize),
    )
    terms = np.empty((longest, 2, posts))
    to_end, from_start = terms[:, 0], terms[:, 1]
    multiply, add, reduce_sum = np.multiply, np.add, np.add.reduce
    before, after = sums[:, 0], sums[:, 1]
    for j in range(words):
        last = j + longest
        multiply(before[j:last], cells_nlb[j], to_end)
        multiply(after[j:last][::-1], starting[words - 1 - j], from_start)
        reduce_sum(terms, 0, None, sums[last])
        add(sums[last], sums[last - 1], sums[last])
    return before[longest - 1 :], after[longest - 1 :][::-1]


def _weights_of_one(units: Units, weights_u: Doubles) -> tuple[Doubles, Doubles]:
    """`_weights` of a single post: too few numbers for NumPy's overhead at every word."""
    starts, stops = units.start_u.tolist(), (units.end_u + 1).tolist()
    words, weights = stops[-1], weights_u.tolist()
    forward = [1.0]
    for start, stop, weight in zip(starts, stops, weights, strict=True):
        while len(forward) <= stop:
            forward.append(forward[-1])
        forward[stop] += forward[start] * weight
    # Weights of the units that start at each word, complete once all that end later were seen.
    starting = [0.0] * (words + 1)
    backward = [1.0] * (words + 1)
    place = words
    for start, stop, weight in zip(
        reversed(starts), reversed(stops), reversed(weights), strict=True
    ):
        while place > stop:
            place -= 1
            backward[place] = backward[place + 1] + starting[place]
        starting[start] += weight * backward[stop]
    for j in range(place - 1, -1, -1):
        backward[j] = backward[j + 1] + starting[j]
    return np.array(forward)[:, None], np.array(backward)[:, None]


def outside_scores(
    units: Units, scores_uc: Doubles, combine: Callable[[Doubles, int], Doubles]
) -> tuple[Doubles, Doubles]:
    """What a segmentation scores around each unit, less the total of all segmentations.

    Args:
        units: Where the units are.
        scores_uc: Their scores, float64.
        combine: `log_sum_exp` for sums over segmentations, `maximum` for the best one.

    Returns:
        Outside score less the total (U,), the totals (B,).
    """
    table = units.unit_nlb
    words, longest, posts = table.shape
    if not len(scores_uc):
        return np.zeros(0), np.zeros(posts)
    gains_u = combine(scores_uc, 1)
    cells = np.append(gains_u, -np.inf).take(table)
    forward, backward = _segment_sums(cells, maximum if combine is maximum else _log_sum_rows)
    rows = np.arange(words)[:, None] + np.arange(longest)
    outside_u = np.empty(len(scores_uc) + 1)
    outside_u[table] = forward[:-1][rows] + backward[1:, None] - forward[-1]
    return outside_u[:-1], forward[-1]


def maximum(values: Doubles, axis: int) -> Doubles:
    """The largest value over an axis."""
    largest: Doubles = values.max(axis=axis)
    return largest


def _log_sum_rows(terms: Doubles, axis: int) -> Doubles:
    """As `log_sum_exp`, where the largest term is finite; overwrites the terms."""
    peak = np.maximum.reduce(terms, axis)
    np.exp(np.subtract(terms, peak, terms), terms)
    total: Doubles = np.log(np.add.reduce(terms, axis)) + peak
    return total


def _segment_sums(
    cells_nlb: Doubles, combine: Callable[[Doubles, int], Doubles]
) -> tuple[Doubles, Doubles]:
    """Forward sums (L-1 + N+1, B), padded in front, and backward sums (N+1, B).

    "No entity here" is always possible, so of the terms of every sum the first is finite.
    """
    words, longest, posts = cells_nlb.shape
    forward = np.zeros((longest + words, posts))
    terms = np.empty((longest + 1, posts))
    for j in range(words):
        terms[0] = forward[j + longest - 1]
        np.add(forward[j : j + longest], cells_nlb[j], terms[1:])
        forward[j + longest] = combine(terms, 0)
    backward = np.zeros((words + 1, posts))
    flat = cells_nlb.reshape(words * longest, posts)
    for j in range(words - 1, -1, -1):
        starting = flat[_rows_starting_at(j, words, longest)]
        used = terms[: len(starting) + 1]
        used[0] = backward[j + 1]
        np.add(starting, backward[j + 1 : j + 1 + len(starting)], used[1:])
        backward[j] = combine(used, 0)
    return forward, backward


def _rows_starting_at(start: int, words: int, longest: int) -> slice:
    """Rows of an (N*L) table that hold the units starting at a word, shortest first."""
    first = start * longest + longest - 1
    count = min(longest, words - start)
    step = max(longest - 1, 1)
    return slice(first, first + (count - 1) * step + 1, step)


def tag_marginals(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
) -> Floats:
    """Probability of each tag at each step under a linear chain.

    Args:
        emissions_bty: Tag scores, shape (B, T, Y), float32 or float16.
        lengths_b: Valid steps, shape (B,).
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        Probabilities (B, T, Y) float32, 0 past the end and where no path is allowed at all.

    Raises:
        ShapeError: As `viterbi_decode`.
    """
    chain = check_chain_values(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    forward, backward, total = chain_sums(chain, log_sum_exp)
    with np.errstate(invalid="ignore"):
        marginals = np.exp(forward + backward - total[:, None, None])
    valid = np.arange(forward.shape[1]) < chain.lengths_b[:, None]
    marginals[~valid | np.isneginf(total)[:, None]] = 0
    return marginals.astype(np.float32)


def chain_sums(
    chain: Chain, combine: Callable[[Doubles, int], Doubles]
) -> tuple[Doubles, Doubles, Doubles]:
    """Forward and backward sums (B, T, Y) and the total (B,), float64; `combine` as above."""
    emissions = chain.emissions_bty.astype(np.float64)
    transitions = chain.transitions_yy.astype(np.float64)
    lengths, end = chain.lengths_b, chain.end_y.astype(np.float64)
    batch, steps, tags = emissions.shape
    forward = np.empty((batch, steps, tags))
    backward = np.empty((batch, steps, tags))
    if not steps or not batch:
        return forward, backward, np.zeros(batch)
    forward[:, 0] = chain.start_y + emissions[:, 0]
    for t in range(1, steps):
        forward[:, t] = combine(forward[:, t - 1, :, None] + transitions, 1) + emissions[:, t]
    backward[:, -1] = end
    for t in range(steps - 2, -1, -1):
        onward = transitions + (emissions[:, t + 1] + backward[:, t + 1])[:, None, :]
        backward[:, t] = np.where((lengths == t + 1)[:, None], end, combine(onward, 2))
    total = combine(forward[:, 0] + backward[:, 0], 1)
    return forward, backward, np.where(lengths == 0, 0.0, total)


def span_marginals(
    emissions_bty: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    tags_bt: npt.ArrayLike,
    spans_e3: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike,
    transitions_yy: npt.ArrayLike,
    end_y: npt.ArrayLike,
    allowed_yy: npt.ArrayLike | None = None,
) -> Floats:
    """Probability of the tags of whole spans under a linear chain.

    Args:
        emissions_bty: Tag scores, shape (B, T, Y), float32 or float16.
        lengths_b: Valid steps, shape (B,).
        tags_bt: Tags, as `viterbi_decode` returns them, shape (B, T).
        spans_e3: (sequence, first step, last step inclusive) of each span, shape (E, 3).
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        Probability that all steps of a span carry its tags, whatever is around it, shape (E,),
        float32.

    Raises:
        ShapeError: As `viterbi_decode`, or a span lies outside its sequence.
    """
    chain = check_chain_values(emissions_bty, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    spans = np.asarray(spans_e3, np.intp).reshape(-1, 3)
    tags = np.asarray(tags_bt)
    if tags.shape != chain.emissions_bty.shape[:2]:
        raise ShapeError(
            f"tags_bt must have shape {chain.emissions_bty.shape[:2]}, got {tags.shape}"
        )
    row, first, last = spans.T
    if spans.size and (
        row.min() < 0
        or row.max() >= len(tags)
        or np.any((first < 0) | (last < first) | (last >= chain.lengths_b[row]))
    ):
        raise ShapeError("spans_e3 must be (sequence, first, last) within the sequences' lengths")
    forward, backward, total = chain_sums(chain, log_sum_exp)
    steps = np.arange(tags.shape[1] - 1)
    moves = chain.transitions_yy[tags[:, :-1], tags[:, 1:]].astype(np.float64)
    moves += chain.emissions_bty[np.arange(len(tags))[:, None], steps + 1, tags[:, 1:]]
    inside = (steps >= first[:, None]) & (steps < last[:, None])
    score = np.where(inside, moves[row], 0.0).sum(1)
    score += forward[row, first, tags[row, first]] + backward[row, last, tags[row, last]]
    with np.errstate(invalid="ignore"):
        probabilities: Floats = np.nan_to_num(np.exp(score - total[row])).astype(np.float32)
    return probabilities
