"""Segmental decoding against every segmentation, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings

from amlr.errors import InputError, ShapeError
from amlr.kernels import Units, segmental_decode
from kernel_oracles import (
    SegmentCase,
    all_segmentations,
    dense_case,
    f32,
    segment_cases,
    segment_scores,
)

NO_UNITS = SegmentCase(lengths_b=[3, 0], spans_b=[[], []], scores_uc=np.zeros((0, 2), np.float32))
SHORT_OR_LONG = SegmentCase(
    lengths_b=[2], spans_b=[[(0, 0), (1, 1), (0, 1)]], scores_uc=f32([[1], [1], [2]])
)


@example(case=dense_case(5, 2, 0.0))
@example(case=dense_case(4, 2, 1.0, posts=2))
@example(case=dense_case(1, 1, 2.0))
@example(case=dense_case(4, 2, -np.inf))
@example(case=NO_UNITS)
@example(case=SHORT_OR_LONG)
@settings(max_examples=150)
@given(case=segment_cases())
def test_answer_equals_exhaustive_search(case: SegmentCase) -> None:
    entities, scores = segmental_decode(case.units, case.lengths_b)
    assert scores.dtype == np.float32
    assert len(entities) == len(case.lengths_b)
    for b in range(len(case.lengths_b)):
        answers = all_segmentations(case, b)
        totals = segment_scores(case, b, answers)
        assert scores[b] == totals.max()
        assert entities[b].dtype == np.int32
        assert entities[b].tolist() == [list(s) for s in answers[int(totals.argmax())]]


@pytest.mark.parametrize("posts", [1, 2])
def test_tie_rule(posts: int) -> None:
    def answer(spans: list[tuple[int, int]], scores: list[list[float]]) -> Any:
        lengths = [2] * posts
        case = SegmentCase(
            lengths_b=lengths, spans_b=[spans] * posts, scores_uc=f32(scores * posts)
        )
        entities = segmental_decode(case.units, lengths)[0]
        assert all(each.tolist() == entities[0].tolist() for each in entities)
        return entities[0].tolist()

    assert answer([(0, 0)], [[0.0, 0.0]]) == []  # nothing rather than a zero
    assert answer([(0, 0), (0, 1)], [[2, 2], [2, 2]]) == [[0, 0, 0]]  # no entity ends at word 1
    assert answer([(0, 0), (0, 1), (1, 1)], [[1, 1], [2, 2], [1, 1]]) == [[0, 1, 0]]  # the longer
    assert answer([(0, 0), (1, 1), (0, 1)], [[1, 1], [1, 1], [2, 2]]) == [[0, 1, 0]]  # in any order
    assert answer([(0, 0), (0, 1), (1, 1)], [[1, 1], [2, 3], [1, 1]]) == [[0, 1, 1]]  # the better


def test_posts_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    spans = []
    lengths = rng.integers(0, 25, 60).tolist()
    for words in lengths:
        every = [(s, e) for e in range(words) for s in range(max(0, e - 5), e + 1)]
        spans.append([span for span in every if rng.random() < 0.7])
    scores = (rng.standard_normal((sum(map(len, spans)), 4)) - 1).astype(np.float32)
    case = SegmentCase(lengths_b=lengths, spans_b=spans, scores_uc=scores)
    together, totals = segmental_decode(case.units, lengths)
    first = 0
    for b, post in enumerate(spans):
        own = scores[first : first + len(post)]
        alone = SegmentCase(lengths_b=[lengths[b]], spans_b=[post], scores_uc=own)
        entities, total = segmental_decode(alone.units, [lengths[b]])
        assert together[b].tolist() == entities[0].tolist()
        assert totals[b] == total[0]
        first += len(post)


def test_units_longer_than_255_words() -> None:
    units = Units(np.array([0, 2]), np.array([0, 0]), np.array([299, 300]), f32([[1], [2]]))
    entities, _ = segmental_decode(units, [301])
    assert entities[0].tolist() == [[0, 300, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores_uc": np.zeros(3)}, "scores_uc must have shape"),
        ({"scores_uc": np.zeros((3, 0))}, "no classes"),
        ({"scores_uc": f32([[0], [np.nan], [0]])}, r"scores_uc holds nan at index \(1, 0\)"),
        ({"scores_uc": f32([[0], [np.inf], [0]])}, "scores_uc holds inf"),
        ({"post_offsets": [0, 2]}, "post_offsets must rise from 0 to the number of rows"),
        ({"post_offsets": [0, 3, 2, 3]}, "post_offsets must rise"),
        ({"post_offsets": [1, 3]}, "post_offsets must rise"),
        ({"post_offsets": [0.0, 3.0]}, "post_offsets must be 1-D integers"),
        ({"start_u": [0, 0]}, "one entry per row"),
        ({"start_u": [0, 2, 0]}, r"unit 1 spans words 2\.\.1"),
        ({"start_u": [-1, 0, 0]}, r"unit 0 spans words -1\.\.0"),
        ({"end_u": [1, 0, 1], "start_u": [1, 0, 0]}, "sorted by end word"),
        ({"end_u": [0, 1, 1], "start_u": [0, 1, 1]}, r"two units for words 1\.\.1"),
        ({"has_logits_u": np.ones(2, bool)}, "has_logits_u must have shape"),
    ],
)
def test_units_are_checked(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "post_offsets": [0, 3],
        "start_u": [0, 0, 1],
        "end_u": [0, 1, 1],
        "scores_uc": np.zeros((3, 1), np.float32),
    }
    Units(**arguments)
    with pytest.raises(ShapeError, match=message):
        Units(**{**arguments, **change})


def test_lengths_and_sums_are_checked() -> None:
    units = dense_case(3, 1, 1.0).units
    with pytest.raises(ShapeError, match="ends at word 2, but lengths_b says the post has 2 words"):
        segmental_decode(units, [2])
    with pytest.raises(ShapeError, match="lengths_b must be 1 integers"):
        segmental_decode(units, [3, 3])
    with pytest.raises(InputError, match="no decoder backend"):
        segmental_decode(units, [3], backend="cupy")
    with pytest.raises(ShapeError, match="sum of scores_uc"):
        segmental_decode(dense_case(3, 1, 3e38).units, [3])
