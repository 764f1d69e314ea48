"""The segmental and joint kernels against the NumPy reference, and the box certificate."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from amlr.errors import ShapeError
from amlr.kernels import Units, box_redecode, segmental_decode
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.segmental import decode_table
from shims.cases import unit_case
from shims.full_decoders import FullDecoders
from shims.joint import JointCase, joint_case, run_joint
from shims.raw import decode_units
from shims.shim_device import set_schedule


def assert_equal(decoders: FullDecoders, units: Units, lengths: npt.NDArray[Any]) -> None:
    entities, scores = decoders.segmental_decode(units, lengths)
    expected, expected_scores = segmental_decode(units, lengths)
    np.testing.assert_array_equal(scores, expected_scores)
    assert [post.tolist() for post in entities] == [post.tolist() for post in expected]


@pytest.mark.parametrize("classes", [1, 4, 7])
def test_equals_reference(library: KernelLibrary, decoders: FullDecoders, classes: int) -> None:
    cases = itertools.product((1, 2, 7, 20), (True, False), (True, False))
    for seed, (words, integers, shuffled) in enumerate(cases):
        set_schedule(library, seed % 3)
        units, lengths = unit_case(seed, 6, words, classes, integers=integers, shuffled=shuffled)
        assert_equal(decoders, units, lengths)


def test_tiles_of_many_units(decoders: FullDecoders) -> None:
    # More than 32 units end at one word, and the number of units is a multiple of 32, or one off.
    units, lengths = unit_case(0, 3, 60, 3, longest=60, density=1.0, integers=True)
    assert_equal(decoders, units, lengths)
    for count in (31, 32, 33, 64):
        ends = np.arange(count)
        units = Units(np.array([0, count]), ends, ends, np.ones((count, 2), np.float32))
        assert_equal(decoders, units, np.array([count]))


def test_longest_post(decoders: FullDecoders) -> None:
    assert_equal(decoders, *unit_case(2, 2, 512, 4, longest=3, density=0.3))


def test_equals_exhaustive_search(decoders: FullDecoders) -> None:
    for seed in range(8):
        units, lengths = unit_case(seed, 4, 7, 2, longest=4, density=0.6, integers=True)
        entities, scores = decoders.segmental_decode(units, lengths)
        for post in range(4):
            chosen, score = _search(units, post, int(lengths[post]))
            assert scores[post] == score
            assert [tuple(row) for row in entities[post].tolist()] == chosen


def _search(units: Units, post: int, words: int) -> tuple[list[tuple[int, int, int]], float]:
    """Try every segmentation of the first `words` words, preferred ones first."""
    mine = range(int(units.post_offsets[post]), int(units.post_offsets[post + 1]))

    def ways(end: int) -> list[tuple[float, list[tuple[int, int, int]]]]:
        if end == 0:
            return [(0.0, [])]
        found = list(ways(end - 1))  # no entity ends here
        ending = [u for u in mine if units.end_u[u] == end - 1]
        for u in sorted(ending, key=lambda u: int(units.start_u[u])):  # the longer unit first
            start = int(units.start_u[u])
            for c, g in enumerate(units.scores_uc[u].tolist()):  # the lowest class first
                found += [(score + g, [*rows, (start, end - 1, c)]) for score, rows in ways(start)]
        top = max(score for score, _ in found)
        # What ends here is decided first, so of equal ways the first one found stays in front.
        return [next(way for way in found if way[0] == top)]

    score, rows = ways(words)[0]
    return rows, score


@pytest.mark.parametrize(
    ("name", "spans", "scores", "expected"),
    [
        ("no entity rather than a worthless one", [(0, 0)], [[0]], []),
        ("the longer unit", [(1, 1), (0, 1)], [[2], [2]], [(0, 1, 0)]),
        ("the longer unit, given first", [(0, 1), (1, 1)], [[2], [2]], [(0, 1, 0)]),
        ("the lowest class", [(0, 0)], [[1, 3, 3]], [(0, 0, 1)]),
        ("two short ones tie with a long one", [(0, 0), (0, 1), (1, 1)], [[1], [2], [1]],
         [(0, 1, 0)]),
        ("forbidden units", [(0, 0), (0, 1)], [[-np.inf], [-np.inf]], []),
    ],
)  # fmt: skip
def test_ties(
    decoders: FullDecoders,
    name: str,
    spans: list[tuple[int, int]],
    scores: list[list[float]],
    expected: list[tuple[int, int, int]],
) -> None:
    start, end = np.array(spans).T
    units = Units(np.array([0, len(spans)]), start, end, np.array(scores, np.float32))
    entities, _ = decoders.segmental_decode(units, [2])
    assert [tuple(row) for row in entities[0].tolist()] == expected, name
    assert_equal(decoders, units, np.array([2]))


def test_no_posts_and_no_units(decoders: FullDecoders) -> None:
    nothing = np.zeros(0, np.int64)
    empty = np.zeros((0, 2), np.float32)
    assert decoders.segmental_decode(Units(np.array([0]), nothing, nothing, empty), [])[0] == []
    entities, scores = decoders.segmental_decode(
        Units(np.array([0, 0, 0]), nothing, nothing, empty), [3, 0]
    )
    assert [post.shape for post in entities] == [(0, 3), (0, 3)]
    assert scores.tolist() == [0, 0]


def test_overflow_is_an_error(decoders: FullDecoders) -> None:
    ends = np.arange(2)
    units = Units(np.array([0, 2]), ends, ends, np.full((2, 1), 3e38, np.float32))
    with pytest.raises(ShapeError, match="sum of scores_uc"):
        decoders.segmental_decode(units, [2])


@pytest.mark.parametrize("many", [False, True], ids=["one-radius", "radius-per-score"])
def test_box_certificate(library: KernelLibrary, decoders: FullDecoders, many: bool) -> None:
    verdicts = []
    for seed in range(6):
        set_schedule(library, seed % 3)
        units, lengths = unit_case(seed, 8, 6, 3, integers=seed % 2 == 0)
        rng = np.random.default_rng(seed)
        radii = rng.random(units.scores_uc.shape) / 2 if many else np.float64(0.2)
        _, certified = decoders.certify(units, lengths, radii)
        assert certified.tolist() == box_redecode(units, lengths, radius=radii).tolist()
        verdicts += certified.tolist()
    assert any(verdicts)
    assert not all(verdicts)


def test_box_of_radius_zero_certifies_everything(decoders: FullDecoders) -> None:
    units, lengths = unit_case(4, 6, 12, 3, integers=True)
    assert decoders.certify(units, lengths, 0.0)[1].all()


def test_bad_radius_is_refused(decoders: FullDecoders) -> None:
    units, lengths = unit_case(0, 2, 4, 3)
    for radius in (-1.0, np.nan, np.zeros(5)):
        with pytest.raises(ShapeError, match="radius"):
            decoders.certify(units, lengths, radius)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_joint_scores_are_bit_equal(library: KernelLibrary, weight: float) -> None:
    case = joint_case(3, weight=weight)
    found = run_joint(library, case)
    np.testing.assert_array_equal(found.scores_uc, case.expected.scores_uc)
    entities, scores = segmental_decode(case.expected, case.lengths_b)
    np.testing.assert_array_equal(found.scores_b, scores)
    assert [rows.tolist() for rows in found.entities] == [rows.tolist() for rows in entities]


def test_owner_names_the_unit_of_each_word(library: KernelLibrary) -> None:
    case = joint_case(4)
    found = run_joint(library, case)
    expected = np.full(len(case.word_emissions_wy), -1)
    for post, rows in enumerate(found.entities):
        for start, end, _ in rows.tolist():
            first = case.word_offsets[post]
            unit = found.unit_of[post, start, end]
            expected[first + start : first + end + 1] = unit
    np.testing.assert_array_equal(found.owner_w, expected)


def test_joint_box_certificate(library: KernelLibrary) -> None:
    verdicts = []
    for seed in range(5):
        case = joint_case(seed, weight=0.5)
        found = run_joint(library, case, np.full((4, 2), (0.1, 0.03)))
        worst = joint_worst_case(case, found.entities, 0.1, 0.03)
        np.testing.assert_allclose(found.worst_uc, worst, rtol=1e-12, atol=1e-12)
        again = decode_table(case.expected, worst)[0].split()
        same = [a.tolist() == b.tolist() for a, b in zip(found.entities, again, strict=True)]
        assert found.certified_b.tolist() == same
        certified = box_redecode(
            case.expected,
            case.lengths_b,
            radius=np.where(case.logit_rows_u >= 0, 0.1, 0.0)[:, None],
            token_radius=0.03,
            weight=case.weight,
        )
        assert certified.tolist() == same
        verdicts += same
    assert any(verdicts)
    assert not all(verdicts)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_joint_box_certificate_with_radii_of_each_post(
    library: KernelLibrary, weight: float
) -> None:
    """What an engine measures: errors of g and of emissions, by kind of post."""
    verdicts = []
    for seed in range(5):
        case = joint_case(seed, weight=weight)
        units, posts = case.expected, len(case.lengths_b)
        radii_b2 = np.random.default_rng(seed).choice([0.0, 0.01, 0.1], (posts, 2))
        found = run_joint(library, case, radii_b2)
        unit_posts = np.repeat(np.arange(posts), np.diff(units.post_offsets))
        radius_u1 = np.where(case.logit_rows_u >= 0, radii_b2[unit_posts, 0], 0.0)[:, None]
        for post in range(posts):
            # One radius for all emissions is what the reference takes.
            certified = box_redecode(
                units,
                case.lengths_b,
                radius=radius_u1,
                token_radius=radii_b2[post, 1],
                weight=case.weight,
            )
            assert found.certified_b[post] == certified[post]
        verdicts += found.certified_b.tolist()
    assert any(verdicts)
    assert not all(verdicts)


def joint_worst_case(
    case: JointCase,
    entities: list[npt.NDArray[np.int32]],
    score_radius: float,
    tag_radius: float,
) -> npt.NDArray[np.float64]:
    """Perturb the raw numbers against the winner, then score them in float64."""
    units = case.expected
    emissions = case.word_emissions_wy.astype(np.float64) + tag_radius
    moves = np.full(units.scores_uc.shape, score_radius)
    winners = np.full(len(emissions), case.tags.index("O"))
    for post, rows in enumerate(entities):
        for start, end, label in rows.tolist():
            first = case.word_offsets[post]
            winners[first + start : first + end + 1] = case.tags.index(f"I-{case.labels[label]}")
            winners[first + start] = case.tags.index(f"B-{case.labels[label]}")
            unit = case.unit_of[post, start, end]
            moves[unit, label] = -score_radius
    emissions[np.arange(len(emissions)), winners] -= 2 * tag_radius
    worst = np.empty(units.scores_uc.shape)
    for (post, start, end), unit in case.unit_of.items():
        first = case.word_offsets[post]
        for c, label in enumerate(case.labels):
            gain = 0.0
            for word in range(first + start, first + end + 1):
                tag = "B-" if word == first + start else "I-"
                column = case.tags.index(tag + label)
                gain += emissions[word, column] - emissions[word, case.tags.index("O")]
            base = -float(np.float32(case.bias))
            if (row := case.logit_rows_u[unit]) >= 0:
                base += float(case.logits[row, 1 + c]) - float(case.logits[row, 0]) + moves[unit, c]
            worst[unit, c] = base + float(np.float32(case.weight)) * gain
    return worst


def test_malformed_posts_get_nan_and_no_entity(library: KernelLibrary) -> None:
    posts: dict[str, tuple[list[tuple[int, int]], list[float], int]] = {
        "sound": ([(0, 0), (0, 1)], [1, 3], 2),
        "nan": ([(0, 0), (1, 1)], [1, np.nan], 2),
        "infinite": ([(0, 0), (1, 1)], [1, np.inf], 2),
        "past the last word": ([(0, 0), (0, 2)], [1, 1], 2),
        "ends fall": ([(0, 1), (0, 0)], [1, 1], 2),
        "empty unit": ([(1, 0), (1, 1)], [1, 1], 2),
        "negative start": ([(-1, 0), (1, 1)], [1, 1], 2),
    }
    spans = [span for mine, _, _ in posts.values() for span in mine]
    scores = np.array([[g] for _, mine, _ in posts.values() for g in mine], np.float32)
    counts, choice, totals = decode_units(
        library, list(range(0, 2 * len(posts) + 1, 2)), spans, scores, [2] * len(posts)
    )
    assert counts.tolist() == [1, *[0] * (len(posts) - 1)]
    assert choice.tolist() == [-1, 0, *[-1] * (len(spans) - 2)]
    assert totals[0] == 3
    assert np.isnan(totals[1:]).all()
