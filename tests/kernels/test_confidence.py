"""Marginals, margins and n-best lists against the list of all answers."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings

from amlr.errors import ShapeError
from amlr.kernels import (
    Units,
    confidence,
    entity_marginals,
    margin,
    n_best,
    segmental_decode,
    span_marginals,
    tag_marginals,
    viterbi_decode,
)
from kernel_oracles import (
    ChainCase,
    SegmentCase,
    all_paths,
    all_segmentations,
    chains,
    dense_case,
    random_chain,
    segment_cases,
    segment_scores,
    zero_chain,
)


def chain_weights(case: ChainCase, b: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Probability and tags of every path, None where none is allowed."""
    totals, paths = all_paths(case, b)
    if totals.max() == -np.inf:
        return None
    weights = np.exp(totals - totals.max())
    return weights / weights.sum(), paths


@example(case=zero_chain(3, 4, 3, [4, 1, 0]))
@given(case=chains(max_steps=5))
def test_tag_and_span_marginals(case: ChainCase) -> None:
    found = tag_marginals(case.emissions_bty, case.lengths_b, **case.parameters)
    tags, _ = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters)
    for b, length in enumerate(case.lengths_b):
        assert not found[b, length:].any()
        if not length:
            continue
        known = chain_weights(case, b)
        if known is None:
            assert not found[b].any()
            continue
        weights, paths = known
        for tag in range(len(case.start_y)):
            expected = ((paths == tag) * weights[:, None]).sum(0)
            np.testing.assert_allclose(found[b, :length, tag], expected, atol=1e-6)
        spans = [(b, i, j) for i in range(length) for j in range(i, length)]
        probabilities = span_marginals(
            case.emissions_bty, case.lengths_b, tags, spans, **case.parameters
        )
        for (_, i, j), probability in zip(spans, probabilities, strict=True):
            same = (paths[:, i : j + 1] == tags[b, i : j + 1]).all(1)
            assert probability == pytest.approx(weights[same].sum(), abs=1e-6)


@example(case=dense_case(5, 2, 0.0))
@given(case=segment_cases(max_words=6))
def test_entity_marginals(case: SegmentCase) -> None:
    for temperature in (1.0, 2.5):
        found = entity_marginals(case.units, case.lengths_b, temperature=temperature)
        for b in range(len(case.lengths_b)):
            answers = all_segmentations(case, b)
            weights = np.exp(segment_scores(case, b, answers) / temperature)
            weights /= weights.sum()
            for start, end, u in case.post_units(b):
                for label in range(found.shape[1]):
                    has = [(start, end, label) in answer for answer in answers]
                    assert found[u, label] == pytest.approx(weights[has].sum(), abs=1e-6)


def test_marginals_refuse_bad_options() -> None:
    units = dense_case(2, 1, 0.0).units
    with pytest.raises(ShapeError, match="temperature must be positive"):
        entity_marginals(units, [2], temperature=0)
    case = zero_chain(1, 3, 2)
    for spans in ([(0, 2, 3)], [(1, 0, 0)], [(0, 2, 1)]):
        with pytest.raises(ShapeError, match="spans_e3"):
            span_marginals(case.emissions_bty, [3], np.zeros((1, 3), int), spans, **case.parameters)
    with pytest.raises(ShapeError, match="tags_bt must have shape"):
        span_marginals(case.emissions_bty, [3], np.zeros((1, 2), int), [], **case.parameters)


@example(case=zero_chain(2, 3, 2, [3, 0]))
@example(case=zero_chain(1, 3, 1))
@given(case=chains(max_steps=5))
def test_chain_margin(case: ChainCase) -> None:
    found = margin(case.emissions_bty, case.lengths_b, **case.parameters)
    for b, length in enumerate(case.lengths_b):
        totals = np.sort(all_paths(case, b)[0]) if length else np.zeros(1)
        if totals[-1] == -np.inf:
            assert found[b] == (np.inf if len(case.start_y) == 1 else 0)
        else:
            assert found[b] == (totals[-1] - totals[-2] if len(totals) > 1 else np.inf)


@example(case=dense_case(3, 2, 0.0))
@example(case=dense_case(3, 1, 2.0))
@example(case=dense_case(0, 1, 2.0))
@given(case=segment_cases(max_words=6))
def test_segmental_margin(case: SegmentCase) -> None:
    found = margin(case.units, case.lengths_b)
    for b in range(len(case.lengths_b)):
        totals = np.sort(segment_scores(case, b, all_segmentations(case, b)))
        assert found[b] == (totals[-1] - totals[-2] if len(totals) > 1 else np.inf)


@example(case=zero_chain(2, 3, 2, [3, 0]), n=16)
@settings(max_examples=60)
@given(case=chains(max_steps=5), n=...)
def test_n_best_paths(case: ChainCase, n: int) -> None:
    n = 1 + n % 16
    paths, scores = n_best(case.emissions_bty, case.lengths_b, n, **case.parameters)
    best, _ = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters)
    for b, length in enumerate(case.lengths_b):
        if not length:
            assert scores[b].tolist() == [0.0] + [-np.inf] * (n - 1)
            continue
        totals, every = all_paths(case, b)
        expected = -np.sort(-totals)[:n]
        count = int((expected > -np.inf).sum())
        assert scores[b, :count].tolist() == expected[:count].tolist()
        assert np.all(scores[b, count:] == -np.inf)
        assert np.all(paths[b, count:] == -1)
        if count:
            assert paths[b, 0].tolist() == best[b].tolist()
        order = [every.tolist().index(path) for path in paths[b, :count, :length].tolist()]
        assert len(set(order)) == count
        assert totals[order].tolist() == expected[:count].tolist()


@example(case=dense_case(4, 2, 0.0), n=15)
@example(case=dense_case(0, 2, 0.0), n=3)
@settings(max_examples=60)
@given(case=segment_cases(max_words=6), n=...)
def test_n_best_segmentations(case: SegmentCase, n: int) -> None:
    n = 1 + n % 16
    found, scores = n_best(case.units, case.lengths_b, n)
    best, _ = segmental_decode(case.units, case.lengths_b)
    for b in range(len(case.lengths_b)):
        answers = all_segmentations(case, b)
        totals = segment_scores(case, b, answers)
        expected = -np.sort(-totals)[:n]
        count = int((expected > -np.inf).sum())
        assert len(found[b]) == count
        assert scores[b, :count].tolist() == expected[:count].tolist()
        assert found[b][0].tolist() == best[b].tolist()
        order = [answers.index(tuple(map(tuple, rows.tolist()))) for rows in found[b]]
        assert totals[order].tolist() == expected[:count].tolist()
        # Ties come in the order of the tie rule, except those cut off at n.
        for _, tied in groupby(order, key=lambda i: totals[i]):
            listed = list(tied)
            assert listed == sorted(listed)


def test_n_best_on_real_numbers_starts_with_the_decoder() -> None:
    case = random_chain(5, 20, 30, 9)
    paths, scores = n_best(case.emissions_bty, case.lengths_b, 4, **case.parameters)
    best, totals = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters)
    assert np.array_equal(paths[:, 0], best)
    assert np.array_equal(scores[:, 0], totals)


@pytest.mark.parametrize("n", [0, 17])
def test_n_best_is_bounded(n: int) -> None:
    with pytest.raises(ShapeError, match=r"n must lie in 1\.\.16"):
        n_best(dense_case(2, 1, 0.0).units, [2], n)


def test_a_chain_needs_its_parameters() -> None:
    emissions: Any = np.zeros((1, 2, 2), np.float32)
    with pytest.raises(ShapeError, match="needs start_y, transitions_yy and end_y"):
        margin(emissions, [2])
    with pytest.raises(ShapeError, match="needs start_y, transitions_yy and end_y"):
        n_best(emissions, [2], 2)


@pytest.mark.parametrize(("words", "longest", "posts"), [(1, 1, 1), (20, 10, 1), (7, 3, 5)])
def test_fast_log_sums_are_the_plain_ones(words: int, longest: int, posts: int) -> None:
    rng = np.random.default_rng(words)
    cells = rng.normal(0, 30, (words, longest, posts))
    cells[rng.random(cells.shape) < 0.4] = -np.inf
    plain = confidence._segment_sums(cells, confidence.log_sum_exp)
    fast_sums = confidence._segment_sums(cells, confidence._log_sum_rows)
    for fast, slow in zip(fast_sums, plain, strict=True):
        np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("words", [1, 2, 9])
def test_a_post_alone_is_as_sure_as_in_a_batch(words: int) -> None:
    rng = np.random.default_rng(words)
    spans = [(s, e) for e in range(words) for s in range(e + 1) if rng.random() < 0.7 or s == e]
    start, end = np.array(spans).T
    scores = rng.normal(0, 4, (len(spans), 3)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    alone = confidence.entity_marginals(
        Units(np.array([0, len(spans)]), start, end, scores), [words]
    )
    twice = Units(
        np.array([0, len(spans), 2 * len(spans)]),
        np.tile(start, 2),
        np.tile(end, 2),
        np.tile(scores, (2, 1)),
    )
    both = confidence.entity_marginals(twice, [words, words])
    np.testing.assert_allclose(np.tile(alone, (2, 1)), both, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("posts", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 40.0, 2000.0])
@pytest.mark.parametrize("words", [5, 60, 900])
def test_marginals_without_logarithms_are_those_with_them(
    posts: int, scale: float, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights leave float64's range, sums of logarithms take over; else both agree."""
    rng = np.random.default_rng(words)
    spans = [(j - k, j) for j in range(words) for k in range(min(6, j + 1)) if rng.random() < 0.8]
    start, end = np.tile(np.array(spans, np.int32), (posts, 1)).T
    scores = scale * rng.standard_normal((len(start), 3)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    units = Units(np.arange(posts + 1) * len(spans), start, end, scores)
    lengths = [words] * posts
    found = entity_marginals(units, lengths, temperature=1.5)
    every = np.arange(len(scores))
    shares = confidence._outside_shares(units, scores.astype(np.float64) / 1.5, every)
    assert (shares is None) == (words * scale >= 900)
    monkeypatch.setattr(confidence, "_outside_shares", lambda *_: None)
    expected = entity_marginals(units, lengths, temperature=1.5)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
