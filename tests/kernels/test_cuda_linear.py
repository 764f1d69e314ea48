"""The linear-chain kernel against the NumPy reference: equal paths, bit-equal scores."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from amlr.errors import ShapeError
from amlr.kernels import viterbi_decode
from amlr.kernels.launch import KernelLibrary
from shims.cases import ChainCase, chain_case
from shims.full_decoders import FullDecoders
from shims.raw import decode_gathered
from shims.shim_device import set_schedule


def assert_equal(decoders: FullDecoders, case: ChainCase) -> None:
    tags, scores = decoders.viterbi_decode(*case.arguments())
    expected_tags, expected_scores = viterbi_decode(
        case.emissions_bty, case.lengths_b, **case.parameters()
    )
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(tags, expected_tags)


# 4-bit and 5-bit survivors, one below, at and one above their limits; every lane live at 32.
@pytest.mark.parametrize("tags", [2, 3, 9, 13, 16, 17, 32])
def test_equals_reference(library: KernelLibrary, decoders: FullDecoders, tags: int) -> None:
    # Around the chunk sizes 6 and 8, and several chunks.
    for steps, integers, constrained in itertools.product(
        (1, 2, 6, 7, 8, 9, 10, 17, 26), (True, False), (False, True)
    ):
        for seed in (0, steps + tags):
            set_schedule(library, seed)
            assert_equal(
                decoders,
                chain_case(seed, 5, steps, tags, integers=integers, constrained=constrained),
            )


def test_float16_emissions_give_what_their_float32_gives(decoders: FullDecoders) -> None:
    case = chain_case(9, 5, 9, 9)
    assert_equal(decoders, replace(case, emissions_bty=case.emissions_bty.astype(np.float16)))


def test_longest_sequence(decoders: FullDecoders) -> None:
    assert_equal(decoders, chain_case(1, 3, 512, 9))


def test_all_tied_takes_the_lowest_tag(decoders: FullDecoders) -> None:
    zeros = np.zeros(5, np.float32)
    tags, scores = decoders.viterbi_decode(
        np.zeros((2, 20, 5), np.float32), [20, 3], zeros, np.zeros((5, 5), np.float32), zeros
    )
    assert tags[0].tolist() == [0] * 20
    assert tags[1].tolist() == [0] * 3 + [-1] * 17
    assert scores.tolist() == [0, 0]


@pytest.mark.parametrize(("tags", "steps"), [(2, 7), (3, 6), (4, 5)])
def test_equals_exhaustive_search(decoders: FullDecoders, tags: int, steps: int) -> None:
    for seed in range(4):
        case = chain_case(seed, 4, steps, tags, integers=True, constrained=seed % 2 == 1)
        found_tags, found_scores = decoders.viterbi_decode(*case.arguments())
        moves = case.transitions_yy.copy()
        if case.allowed_yy is not None:
            moves[~case.allowed_yy] = -np.inf
        for b, length in enumerate(case.lengths_b):
            best, path = -np.inf, None
            # Read from the end, the first best path in this order is the lowest.
            for backwards in itertools.product(range(tags), repeat=int(length)):
                tried = backwards[::-1]
                score = sum(case.emissions_bty[b, t, tag] for t, tag in enumerate(tried))
                score += sum(moves[pair] for pair in itertools.pairwise(tried))
                if tried:
                    score += case.start_y[tried[0]] + case.end_y[tried[-1]]
                if score > best:
                    best, path = score, tried
            assert found_scores[b] == best
            assert tuple(found_tags[b, :length]) == path


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_an_error_and_not_a_path(decoders: FullDecoders, bad: float) -> None:
    case = chain_case(0, 3, 9, 9)
    case.emissions_bty[0, 4, 7] = bad
    with pytest.raises(ShapeError, match=r"emissions_bty holds .* at index \(0, 4, 7\)"):
        decoders.viterbi_decode(*case.arguments())
    case = chain_case(0, 3, 9, 9)
    case.transitions_yy[2, 3] = bad
    with pytest.raises(ShapeError, match="transitions_yy holds"):
        decoders.viterbi_decode(*case.arguments())


def test_no_allowed_path_scores_minus_infinity(decoders: FullDecoders) -> None:
    case = chain_case(0, 2, 6, 4)
    _, scores = decoders.viterbi_decode(
        np.zeros((2, 6, 4)), [6, 1], case.start_y, np.full((4, 4), -np.inf), case.end_y
    )
    assert scores[0] == -np.inf
    assert np.isfinite(scores[1])


def test_empty_batches(decoders: FullDecoders) -> None:
    zeros = np.zeros(3, np.float32)
    for shape in ((0, 4, 3), (2, 0, 3)):
        tags, scores = decoders.viterbi_decode(
            np.zeros(shape, np.float32), [0] * shape[0], zeros, np.zeros((3, 3)), zeros
        )
        assert tags.shape == shape[:2]
        assert scores.tolist() == [0] * shape[0]


def test_many_sequences_need_many_blocks(decoders: FullDecoders) -> None:
    assert_equal(decoders, chain_case(5, 37, 4, 9, integers=True))


def test_more_tags_than_lanes_is_refused(decoders: FullDecoders) -> None:
    with pytest.raises(ShapeError, match=r"1\.\.32 tags"):
        decoders.viterbi_decode(*chain_case(0, 1, 3, 33).arguments())


def test_too_long_for_shared_memory_is_refused(decoders: FullDecoders) -> None:
    with pytest.raises(ShapeError, match="shared memory"):
        decoders.viterbi_decode(*chain_case(0, 1, 2400, 32).arguments())


def test_rows_found_through_an_index(library: KernelLibrary) -> None:
    for steps in (1, 8, 9, 26):
        case = chain_case(steps, 4, steps, 9)
        tags, scores = decode_gathered(library, case, steps)
        expected, expected_scores = viterbi_decode(
            case.emissions_bty, case.lengths_b, **case.parameters()
        )
        np.testing.assert_array_equal(scores, expected_scores)
        np.testing.assert_array_equal(tags, expected)
