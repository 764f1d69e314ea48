"""The confidence of decoded units on the device against forward-backward in float64."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from amlr.errors import ShapeError
from amlr.kernels import Units, segmental_decode
from amlr.kernels.launch import KernelLibrary
from shims.cases import chosen_marginals, unit_case
from shims.full_decoders import FullDecoders
from shims.joint import joint_case
from shims.shim_device import set_schedule

# Measured: 6e-7 on posts of 512 words.
ATOL = 5e-6


def assert_close(
    decoders: FullDecoders, units: Units, lengths: npt.NDArray[Any], temperature: float = 1.0
) -> npt.NDArray[np.float32]:
    entities, sure = decoders.entity_confidence(units, lengths, temperature=temperature)
    expected, _ = segmental_decode(units, lengths)
    assert [rows.tolist() for rows in entities] == [rows.tolist() for rows in expected]
    assert [len(values) for values in sure] == [len(rows) for rows in entities]
    found: npt.NDArray[np.float32] = np.concatenate(sure)
    reference = chosen_marginals(units, lengths, expected, temperature)
    np.testing.assert_allclose(found, reference, rtol=0, atol=ATOL)
    assert np.all((found > 0) & (found <= 1))
    return found


@pytest.mark.parametrize("classes", [1, 4])
def test_equals_forward_backward(
    library: KernelLibrary, decoders: FullDecoders, classes: int
) -> None:
    cases = itertools.product((1, 2, 7, 20), (True, False), (True, False))
    for seed, (words, integers, shuffled) in enumerate(cases):
        set_schedule(library, seed % 3)
        units, lengths = unit_case(seed, 6, words, classes, integers=integers, shuffled=shuffled)
        for temperature in (1.0, 3.1, 0.2):
            assert_close(decoders, units, lengths, temperature)


def test_runs_scored_by_emissions_alone(decoders: FullDecoders) -> None:
    case = joint_case(2)
    assert len(assert_close(decoders, case.expected, case.lengths_b, 1.4)) > 3


def test_long_posts_and_large_scores_keep_their_digits(decoders: FullDecoders) -> None:
    units, lengths = unit_case(2, 2, 512, 4, longest=3, density=0.5)
    assert len(assert_close(decoders, units, lengths)) > 50
    large = replace(units, scores_uc=units.scores_uc * np.float32(90))
    assert len(assert_close(decoders, large, lengths)) > 50


def test_sparse_posts_of_more_words_than_lanes(decoders: FullDecoders) -> None:
    units, lengths = unit_case(5, 4, 100, 2, density=0.03)
    assert len(assert_close(decoders, units, lengths)) > 1


def test_tiles_of_many_units(decoders: FullDecoders) -> None:
    units, lengths = unit_case(0, 3, 60, 3, longest=60, density=1.0, integers=True)
    assert_close(decoders, units, lengths, 2.0)
    for count in (31, 32, 33, 64, 65):
        ends = np.arange(count)
        units = Units(np.array([0, count]), ends, ends, np.ones((count, 2), np.float32))
        assert_close(decoders, units, np.array([count + 3]))


def test_equals_exhaustive_search(decoders: FullDecoders) -> None:
    for seed in range(6):
        units, lengths = unit_case(seed, 4, 6, 2, longest=3, density=0.6)
        entities, sure = decoders.entity_confidence(units, lengths)
        for post, (rows, values) in enumerate(zip(entities, sure, strict=True)):
            ways = _segmentations(units, post, int(lengths[post]))
            weights = np.exp([score for score, _ in ways])
            for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                holding = [tuple(row) in segments for _, segments in ways]
                assert value == pytest.approx(weights[holding].sum() / weights.sum(), abs=ATOL)


def _segmentations(
    units: Units, post: int, words: int
) -> list[tuple[float, tuple[tuple[int, int, int], ...]]]:
    """Score and segments of every way to cut the first `words` words."""
    if words == 0:
        return [(0.0, ())]
    found = list(_segmentations(units, post, words - 1))
    for u in range(int(units.post_offsets[post]), int(units.post_offsets[post + 1])):
        if units.end_u[u] == words - 1:
            start = int(units.start_u[u])
            for c, g in enumerate(units.scores_uc[u].tolist()):
                found += [
                    (score + g, (*segments, (start, words - 1, c)))
                    for score, segments in _segmentations(units, post, start)
                ]
    return found


def test_temperatures_are_checked(decoders: FullDecoders) -> None:
    units, lengths = unit_case(0, 2, 4, 2)
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ShapeError, match="temperature"):
            decoders.entity_confidence(units, lengths, temperature=temperature)


def test_nothing_to_decode(decoders: FullDecoders) -> None:
    none = Units(np.array([0, 0]), np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2), np.float32))
    entities, sure = decoders.entity_confidence(none, np.array([3]))
    assert [len(rows) for rows in entities] == [len(values) for values in sure] == [0]
