"""Box certificates against the worst perturbation for every other answer: sound and complete.

For two answers A and A' the difference of their scores is linear in the numbers that may move, so
its least value over the box is the nominal one minus the sum of radius * |coefficient|. A keeps
winning if and only if that is positive for every A' (or 0 where the tie rule prefers A). All values
are multiples of 1/4, so sums are exact.
"""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amlr.errors import ShapeError
from amlr.kernels import (
    Units,
    box_redecode,
    joint_scores,
    margin,
    required_margin,
    segmental_decode,
    viterbi_decode,
)
from kernel_oracles import (
    ChainCase,
    SegmentCase,
    Segments,
    all_paths,
    all_segmentations,
    chains,
    dense_case,
    random_chain,
    segment_cases,
    segment_scores,
    zero_chain,
)

RADII = (0.0, 0.25, 0.5, 1.0)


def least_difference(
    own: Counter[Any], other: Counter[Any], values: dict[Any, float], radii: dict[str, float]
) -> float:
    """Least score of `own` minus score of `other` over the box; keys start with their kind."""
    total = 0.0
    for key in own.keys() | other.keys():
        coefficient = own[key] - other[key]
        if coefficient:
            total += coefficient * values[key] - radii[key[0]] * abs(coefficient)
    return total


@example(case=zero_chain(2, 3, 2, [3, 0]), radius=0.0)
@settings(max_examples=100)
@given(case=chains(max_steps=5, max_tags=3), radius=st.sampled_from(RADII))
def test_chain_certificate_is_sound_and_complete(case: ChainCase, radius: float) -> None:
    found = box_redecode(case.emissions_bty, case.lengths_b, radius=radius, **case.parameters)
    for b, length in enumerate(case.lengths_b):
        if not length:
            assert found[b]
            continue
        totals, paths = all_paths(case, b)
        best = int(totals.argmax())
        if totals[best] == -np.inf:
            assert not found[b]
            continue
        differing = (paths != paths[best]).sum(1)
        least = totals[best] - totals - 2 * radius * differing
        preferred = np.arange(len(paths)) < best
        assert found[b] == bool(np.all((least > 0) | ((least == 0) & ~preferred)))


@example(case=dense_case(3, 2, 0.0), radius=0.0)
@example(case=dense_case(3, 2, 1.0), radius=0.25)
@settings(max_examples=100)
@given(case=segment_cases(max_words=5, max_units=9), radius=st.sampled_from(RADII))
def test_segmental_certificate_is_sound_and_complete(case: SegmentCase, radius: float) -> None:
    found = box_redecode(case.units, case.lengths_b, radius=radius)
    for b in range(len(case.lengths_b)):
        answers = all_segmentations(case, b)
        totals = segment_scores(case, b, answers)
        best = int(totals.argmax())
        held = True
        for i, answer in enumerate(answers):
            moved = len(set(answer) ^ set(answers[best]))
            least = totals[best] - totals[i] - radius * moved
            held &= bool(least > 0 or (least == 0 and i >= best))
        assert found[b] == held


@st.composite
def joint_inputs(draw: Any) -> dict[str, Any]:
    """Inputs of `joint_scores` for one post of up to 4 words, two classes."""
    words = draw(st.integers(1, 4))
    every = [(s, e) for e in range(words) for s in range(e + 1)]
    spans = sorted(draw(st.lists(st.sampled_from(every), unique=True)), key=lambda s: s[1])
    quarter = st.integers(-6, 6).map(lambda i: i / 4)
    return {
        "post_offsets": [0, len(spans)],
        "start_u": np.array([s for s, _ in spans], np.int64),
        "end_u": np.array([e for _, e in spans], np.int64),
        "unit_logits_uc": draw(arrays(np.float32, (len(spans), 3), elements=quarter)),
        "word_offsets": [0, words],
        "word_emissions_wy": draw(arrays(np.float32, (words, 5), elements=quarter)),
        "bias": 0.25,
        "weight": draw(st.sampled_from([0.5, 1.0])),
        "tags": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
        "labels": ("PER", "LOC"),
        "max_entity_words": draw(st.integers(0, 3)),
    }


def coefficients(answer: Segments, inputs: dict[str, Any], rows: dict[Any, int]) -> Counter[Any]:
    """How often each raw number enters the score of an answer."""
    found: Counter[Any] = Counter()
    for start, end, label in answer:
        found["bias",] -= 1
        if (start, end) in rows:
            found["z", rows[start, end], 1 + label] += 1
            found["z", rows[start, end], 0] -= 1
        for word in range(start, end + 1):
            tag = 1 + 2 * label + (word > start)
            found["em", word, tag] += inputs["weight"]
            found["em", word, 0] -= inputs["weight"]
    return found


@settings(max_examples=200)
@given(inputs=joint_inputs())
def test_joint_certificate_is_sound_and_complete(inputs: dict[str, Any]) -> None:
    units = joint_scores(**inputs)
    words = inputs["word_offsets"][1]
    answer, _ = segmental_decode(units, [words])
    rows = {span: u for u, span in enumerate(zip(inputs["start_u"], inputs["end_u"], strict=True))}
    values: dict[Any, float] = {("bias",): inputs["bias"]}
    for name, key in (("unit_logits_uc", "z"), ("word_emissions_wy", "em")):
        for place, value in np.ndenumerate(inputs[name]):
            values[(key, *place)] = float(value)
    case = SegmentCase(
        lengths_b=[words],
        spans_b=[list(zip(units.start_u.tolist(), units.end_u.tolist(), strict=True))],
        scores_uc=units.scores_uc,
    )
    answers = all_segmentations(case, 0)
    counts = [coefficients(other, inputs, rows) for other in answers]
    best = answers.index(tuple(map(tuple, answer[0].tolist())))
    # Few radii lie between the certificate and a wrong one, so every answer is tried with all.
    for unit_radius, token_radius in itertools.product(RADII, RADII):
        radii = {"bias": 0.0, "z": unit_radius, "em": token_radius}
        least = [least_difference(counts[best], other, values, radii) for other in counts]
        (certified,) = box_redecode(
            units,
            [words],
            unit_logit_radius=unit_radius,
            token_radius=token_radius,
            weight=inputs["weight"],
            answer=answer,
        )
        assert certified == all(
            value > 0 or (value == 0 and i >= best) for i, value in enumerate(least)
        )


def test_no_random_perturbation_changes_a_certified_answer() -> None:
    rng = np.random.default_rng(0)
    spans = [(s, e) for e in range(9) for s in range(max(0, e - 3), e + 1)]
    rows = np.array(spans)
    logits = (2 * rng.standard_normal((len(rows), 3))).astype(np.float32)
    emissions = (2 * rng.standard_normal((9, 5))).astype(np.float32)
    fixed: dict[str, Any] = {
        "post_offsets": [0, len(rows)],
        "start_u": rows[:, 0],
        "end_u": rows[:, 1],
        "word_offsets": [0, 9],
        "bias": 2.0,
        "weight": 0.5,
        "tags": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
        "labels": ("PER", "LOC"),
    }

    def build(z: Any, em: Any) -> Units:
        return joint_scores(unit_logits_uc=z, word_emissions_wy=em, **fixed)

    answer, _ = segmental_decode(build(logits, emissions), [9])
    outcomes = {True: 0, False: 0}
    for radius in (0.002, 0.01, 0.03, 0.1, 0.3):
        certified = box_redecode(
            build(logits, emissions),
            [9],
            unit_logit_radius=radius,
            token_radius=radius,
            weight=0.5,
        )[0]
        flips = 0
        for _ in range(100):
            moved = (
                (values + radius * rng.choice([-0.999, 0.999], values.shape)).astype(np.float32)
                for values in (logits, emissions)
            )
            other, _ = segmental_decode(build(*moved), [9])
            flips += not np.array_equal(other[0], answer[0])
        outcomes[bool(certified)] += 1
        assert not (certified and flips)
    assert outcomes[True]
    assert outcomes[False]


@settings(max_examples=60)
@given(case=segment_cases(max_words=5, lowest=-2), radius=st.sampled_from(RADII))
def test_sufficient_margins_are_certified_too(case: SegmentCase, radius: float) -> None:
    margins = margin(case.units, case.lengths_b)
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"radius": radius}, required_margin(case.lengths_b, score_error=radius)),
        (
            {"unit_logit_radius": radius},
            required_margin(case.lengths_b, unit_logit_error=radius),
        ),
        (
            {"unit_logit_radius": radius, "token_radius": radius, "weight": 0.5},
            required_margin(
                case.lengths_b, unit_logit_error=radius, token_error=radius, weight=0.5
            ),
        ),
    ]
    for options, needed in cases:
        certified = box_redecode(case.units, case.lengths_b, **options)
        assert np.all(certified[margins > needed])


@settings(max_examples=60)
@given(case=chains(max_steps=5), radius=st.sampled_from(RADII))
def test_sufficient_chain_margins_are_certified_too(case: ChainCase, radius: float) -> None:
    margins = margin(case.emissions_bty, case.lengths_b, **case.parameters)
    certified = box_redecode(case.emissions_bty, case.lengths_b, radius=radius, **case.parameters)
    enough = margins > required_margin(case.lengths_b, token_error=radius)
    _, scores = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters)
    assert np.all(certified[enough & (scores > -np.inf)])


def test_radii_may_differ_from_number_to_number() -> None:
    case = dense_case(2, 1, 1.0)  # units (0, 0), (0, 1), (1, 1); the answer is the two short ones
    assert box_redecode(case.units, [2], radius=np.array([[0.25], [0.25], [0.25]]))[0]
    assert not box_redecode(case.units, [2], radius=np.array([[0.25], [0.75], [0.25]]))[0]
    chain = random_chain(0, 4, 6, 3)
    radius = np.zeros(chain.emissions_bty.shape)
    assert box_redecode(
        chain.emissions_bty, chain.lengths_b, radius=radius, **chain.parameters
    ).all()
    radius[0] = 100
    certified = box_redecode(
        chain.emissions_bty, chain.lengths_b, radius=radius, **chain.parameters
    )
    assert certified.tolist() == [False, True, True, True]


def test_another_answer_is_not_certified() -> None:
    case = dense_case(2, 2, 1.0)
    wrong = [np.array([[0, 0, 1], [1, 1, 0]])]
    assert not box_redecode(case.units, [2], answer=wrong)[0]
    chain = zero_chain(1, 3, 2)
    certified = box_redecode(
        chain.emissions_bty, [3], answer=np.ones((1, 3), int), **chain.parameters
    )
    assert not certified[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1.0}, "radius must be finite and not negative"),
        ({"token_radius": np.nan}, "token_radius must be finite"),
        ({"answer": []}, r"one array per post \(1\)"),
        ({"answer": [[[0, 5, 0]]]}, "no scored unit"),
        ({"answer": [[[0, 0, 7]]]}, "no scored unit"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        box_redecode(dense_case(2, 1, 0.0).units, [2], **options)


def test_chain_options_are_checked() -> None:
    chain = zero_chain(1, 3, 2)
    emissions: Any = chain.emissions_bty
    with pytest.raises(ShapeError, match="needs start_y"):
        box_redecode(emissions, [3])
    with pytest.raises(ShapeError, match="answer must have shape"):
        box_redecode(chain.emissions_bty, [3], answer=np.full((1, 3), 2), **chain.parameters)
    with pytest.raises(ShapeError, match="token_error must be finite"):
        required_margin([1], token_error=-1)
