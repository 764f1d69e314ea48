"""How safe an answer is: box re-decode within radii, and exact margins.

Shape letters: B batch or posts, T steps, Y tags, U units, C classes, N words, E entities.

The answer A is decoded again in the corner of the box where A is worst off and everything else is
best off. For each of the perturbation sets below that corner is one point of the set and minimises
"score of A minus score of A'" for every other answer A' at once. So

* if A wins there, no perturbation in the set changes the answer (sound);
* if another answer wins there, the corner itself changes it (complete).

Ties are covered, because the tie rule is one fixed order of answers. Sums are float64; the float32
decoder's own rounding is not covered and belongs in the radii. Radii are measured.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amlr.errors import ShapeError
from amlr.kernels.arrays import AnyInts, Bools, Doubles, Indices
from amlr.kernels.confidence import chain_sums, maximum, outside_scores
from amlr.kernels.segmental import Found, decode_table
from amlr.kernels.units import Units
from amlr.kernels.validation import (
    Chain,
    check_chain_values,
    check_errors,
    check_lengths,
    check_path,
)
from amlr.kernels.viterbi import advance, viterbi_decode

Answer = Sequence[AnyInts] | npt.ArrayLike | Found


def box_redecode(
    scores: Units | npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    radius: npt.ArrayLike = 0.0,
    unit_logit_radius: npt.ArrayLike = 0.0,
    token_radius: float = 0.0,
    weight: float = 0.0,
    start_y: npt.ArrayLike | None = None,
    transitions_yy: npt.ArrayLike | None = None,
    end_y: npt.ArrayLike | None = None,
    allowed_yy: npt.ArrayLike | None = None,
    answer: Answer | None = None,
) -> Bools:
    """Certify answers: True where no error within the radii can change one.

    The errors assumed, each independent of all others:

    * linear chain: every emission moves by at most `radius`;
    * segmental: every g moves by at most `radius`;
    * joint: every raw unit logit ("none" included) moves by at most `unit_logit_radius`, every
      emission of every word by at most `token_radius`, and g is built from them with `weight`.

    For units the three may be combined. Units without logits (`has_logits_u`) have no logit error.

    Args:
        scores: `Units`, or emissions (B, T, Y) for a linear chain.
        lengths_b: Words of each post, or steps of each sequence, shape (B,).
        radius: Scalar, or an array that broadcasts to (U, C) or (B, T, Y).
        unit_logit_radius: Scalar, or shape (U,).
        token_radius: Radius of every emission that `joint_scores` read.
        weight: The w that `joint_scores` used.
        start_y: Score of starting with a tag, shape (Y,); linear chain only, as the next three.
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.
        answer: The entities or tags to certify, as the decoder returned them; None decodes first.

    Returns:
        Boolean (B,). A sequence without an allowed path is never certified; an empty one always.

    Raises:
        ShapeError: As the decoders; a negative radius; an answer that is not made of units.
    """
    check_errors(
        radius=radius,
        unit_logit_radius=unit_logit_radius,
        token_radius=token_radius,
        weight=weight,
    )
    if not isinstance(scores, Units):
        chain = check_chain_values(scores, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
        return _certify_chain(chain, np.asarray(radius, np.float64), answer)
    lengths = scores.check_lengths(lengths_b)
    unit, label = _answer_units(scores, answer)
    radius_uc = np.broadcast_to(np.asarray(radius, np.float64), scores.scores_uc.shape)
    corner: Doubles = scores.scores_uc.astype(np.float64) + radius_uc
    corner[unit, label] -= 2 * radius_uc[unit, label]
    if np.any(unit_logit_radius):
        _spread_logits(scores, unit, label, np.asarray(unit_logit_radius, np.float64), corner)
    if token_radius * weight:
        corner += 2 * weight * token_radius * _token_shift(scores, lengths, unit, label)
    found, _ = decode_table(scores, corner)
    return ~_posts_that_differ(scores, unit, label, found.unit_e, found.rows_e3[:, 2])


def _answer_units(units: Units, answer: Answer | None) -> tuple[Indices, AnyInts]:
    """Unit and class of each entity of an answer."""
    if answer is None:
        answer, _ = decode_table(units, units.scores_uc)
    if isinstance(answer, Found):
        return answer.unit_e, answer.rows_e3[:, 2]
    posts = len(units.post_offsets) - 1
    per_post: list[AnyInts] = list(answer)  # type: ignore[arg-type]
    if len(per_post) != posts:
        raise ShapeError(f"answer must hold one array per post ({posts}), got {len(per_post)}")
    post = np.repeat(np.arange(posts), [len(rows) for rows in per_post])
    rows = np.concatenate([*(part for part in per_post if len(part)), np.zeros((0, 3), np.int32)])
    table = units.unit_nlb
    words, longest, _ = table.shape
    start, end, label = rows.T.astype(np.intp)
    slot = longest - 1 - (end - start)
    known = (start >= 0) & (start <= end) & (end < words) & (slot >= 0)
    known &= (label >= 0) & (label < units.scores_uc.shape[1])
    unit = np.full(len(rows), len(units.start_u))
    unit[known] = table[end[known], slot[known], post[known]]
    if np.any(unit == len(units.start_u)):
        bad = int((unit == len(units.start_u)).argmax())
        raise ShapeError(
            f"answer has entity {rows[bad].tolist()} in post {post[bad]}, which is no scored unit; "
            "pass the entities decoded from these units"
        )
    return unit, label


def _spread_logits(
    units: Units, unit: Indices, label: AnyInts, radius: Doubles, corner: Doubles
) -> None:
    """Move raw logits within their radius e: g is z_c - z_none - b, so it moves by up to 2e.

    Where a unit is not chosen z_c rises and z_none falls. Where it is, z_c of its class falls and
    z_none rises with the other classes: those keep their g.
    """
    reach = np.broadcast_to(2 * radius, units.start_u.shape)
    if units.has_logits_u is not None:
        reach = reach * units.has_logits_u
    corner += reach[:, None]
    corner[unit] -= reach[unit, None]
    corner[unit, label] -= reach[unit]


def _token_shift(units: Units, lengths: Indices, unit: Indices, label: AnyInts) -> Doubles:
    """How a unit's g moves in the corner, in steps of 2 w e.

    In the corner the emission of the answer's tag falls by e at every word (O included) and all
    others rise by e. A unit's word contributes em[tag] - em[O], which therefore moves by +2e where
    the answer says O, by -2e where the answer has the same entity tag, and not at all elsewhere.

    Returns:
        (O words of the answer) - (words that have the answer's own tag), shape (U, C).
    """
    classes = np.arange(units.scores_uc.shape[1])
    base = np.concatenate([[0], np.cumsum(lengths)])
    first_of_post = np.repeat(base[:-1], np.diff(units.post_offsets))
    first, stop = first_of_post + units.start_u, first_of_post + units.end_u + 1
    words = int(base[-1])
    begin = np.full(words, -1)
    begin[first[unit]] = label
    # Classes of words inside entities, by adding at the start and taking off after the end.
    edges = np.zeros(words + 1, np.intp)
    np.add.at(edges, first[unit], label + 1)
    np.subtract.at(edges, stop[unit], label + 1)
    covered = np.cumsum(edges)[:words] - 1  # -1 outside entities
    # Column c: O words less words inside an entity of class c, summed up to each word.
    weights = (covered < 0).astype(np.int32)[:, None]
    weights = weights - ((covered[:, None] == classes) & (begin < 0)[:, None])
    totals = np.zeros((words + 1, len(classes)), np.int32)
    np.cumsum(weights, axis=0, out=totals[1:])
    shift = totals.take(stop, axis=0)
    shift -= totals.take(first + 1, axis=0)
    # A unit's first word takes the B tag, which only the first word of an entity has.
    alone = (covered < 0).astype(np.int32)[:, None] - (begin[:, None] == classes)
    shift += alone.astype(np.int32).take(first, axis=0)
    return shift.astype(np.float64)


def _posts_that_differ(
    units: Units, unit: Indices, label: AnyInts, other: AnyInts, other_label: AnyInts
) -> Bools:
    """True for posts whose two answers are not the same units with the same classes."""
    chosen = np.zeros((2, len(units.start_u)), np.intp)
    chosen[0, unit] = label + 1
    chosen[1, other] = other_label + 1
    different = np.flatnonzero(chosen[0] != chosen[1])
    post = np.searchsorted(units.post_offsets, different, side="right") - 1
    return np.bincount(post, minlength=len(units.post_offsets) - 1) > 0


def _certify_chain(chain: Chain, radius: Doubles, answer: Answer | None) -> Bools:
    """Check every decision of the answer against the forward maxima of the corner."""
    emissions, lengths, start, transitions, end = chain
    batch, steps, tags = emissions.shape
    if not batch or not steps:
        return np.ones(batch, np.bool_)
    path: AnyInts
    if answer is None:
        path, _ = viterbi_decode(
            emissions, lengths, start_y=start, transitions_yy=transitions, end_y=end
        )
    else:
        path = check_path("answer", answer, chain)
    path_tb = np.where(np.arange(steps) < lengths[:, None], path, 0).T
    corner = emissions + np.broadcast_to(radius, emissions.shape)
    own = np.take_along_axis(corner, path_tb.T[:, :, None], 2)
    own -= 2 * np.take_along_axis(np.broadcast_to(radius, corner.shape), path_tb.T[:, :, None], 2)
    np.put_along_axis(corner, path_tb.T[:, :, None], own, 2)
    alphas = np.ascontiguousarray(corner.transpose(1, 2, 0))
    advance(
        alphas,
        start.astype(np.float64),
        transitions.astype(np.float64)[:, :, None],
        np.empty((tags, tags, batch)),
    )
    rows = np.arange(batch)
    final = alphas[lengths - 1, :, rows] + end
    last = path_tb[lengths - 1, rows]
    certified: Bools = (final.argmax(1) == last) & (final[rows, last] > -np.inf)
    into = transitions.T.astype(np.float64)
    chosen = (alphas[:-1].transpose(0, 2, 1) + into[path_tb[1:]]).argmax(2) == path_tb[:-1]
    chosen |= np.arange(1, steps)[:, None] >= lengths
    certified &= chosen.all(0)
    certified[lengths == 0] = True
    return certified


def margin(
    scores: Units | npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    *,
    start_y: npt.ArrayLike | None = None,
    transitions_yy: npt.ArrayLike | None = None,
    end_y: npt.ArrayLike | None = None,
    allowed_yy: npt.ArrayLike | None = None,
) -> Doubles:
    """Score of the best answer minus that of the best different answer.

    Args:
        scores: `Units` for segmental and joint decoding, or emissions (B, T, Y) for a linear chain,
            which needs the other arguments too (as in `viterbi_decode`).
        lengths_b: Words of each post, or steps of each sequence, shape (B,).
        start_y: Score of starting with a tag, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column), shape (Y, Y).
        end_y: Score of ending with a tag, shape (Y,).
        allowed_yy: Moves that may be used, shape (Y, Y); None allows all.

    Returns:
        Margins (B,), float64, from float64 sums: 0 where two answers tie, inf where there is no
        other answer, 0 where no path is allowed at all.

    Raises:
        ShapeError: As the decoders.
    """
    if isinstance(scores, Units):
        return _segmental_margin(scores, lengths_b)
    chain = check_chain_values(scores, lengths_b, start_y, transitions_yy, end_y, allowed_yy)
    batch, steps, tags = chain.emissions_bty.shape
    if tags < 2 or not batch or not steps:
        return np.full(batch, np.inf)
    forward, backward, _ = chain_sums(chain, maximum)
    # A different path has another tag at some step; there it scores at most the second best of the
    # paths through each tag.
    best_two = np.partition(forward + backward, tags - 2, axis=2)[:, :, -2:]
    with np.errstate(invalid="ignore"):
        gaps = best_two[:, :, 1] - best_two[:, :, 0]
    gaps[np.isneginf(best_two[:, :, 1])] = 0
    gaps[np.arange(steps) >= chain.lengths_b[:, None]] = np.inf
    return -maximum(-gaps, 1)


def _segmental_margin(units: Units, lengths_b: npt.ArrayLike) -> Doubles:
    """min(weakest chosen unit, best minus the best segmentation with a unit not chosen)."""
    units.check_lengths(lengths_b)
    posts = len(units.post_offsets) - 1
    scores = units.scores_uc.astype(np.float64)
    margins = np.full(posts, np.inf)
    if not len(scores):
        return margins
    outside, _ = outside_scores(units, scores, maximum)
    found, _ = decode_table(units, scores)
    classes = found.rows_e3[:, 2]
    gaps: Doubles = -(outside[:, None] + scores)
    gaps[found.unit_e, classes] = scores[found.unit_e, classes]
    filled = np.diff(units.post_offsets) > 0
    starts = units.post_offsets[:-1][filled].astype(np.intp)
    margins[filled] = np.minimum.reduceat(gaps.min(1), starts)
    return margins.clip(min=0.0)  # rounding may leave -1e-16 at a tie


def required_margin(
    lengths_b: npt.ArrayLike,
    *,
    score_error: float = 0.0,
    unit_logit_error: float = 0.0,
    token_error: float = 0.0,
    weight: float = 1.0,
) -> Doubles:
    """The margin that suffices: above it, no error within the radii can change the answer.

    Loose: `box_redecode` certifies everything this does, and more.

    Args:
        lengths_b: Words (steps) of each post, shape (B,).
        score_error: Largest error of any g.
        unit_logit_error: Largest error of any raw unit logit.
        token_error: Largest error of any emission.
        weight: w of the joint score; 1 for a linear chain.

    Returns:
        Margins (B,): N * (2 score_error + 3 unit_logit_error + 2 weight token_error).
    """
    lengths = check_lengths(lengths_b, len(np.asarray(lengths_b)))
    errors = {
        "score_error": score_error,
        "unit_logit_error": unit_logit_error,
        "token_error": token_error,
        "weight": weight,
    }
    check_errors(**errors)
    return lengths.astype(np.float64) * (
        2.0 * score_error + 3.0 * unit_logit_error + 2.0 * weight * token_error
    )
