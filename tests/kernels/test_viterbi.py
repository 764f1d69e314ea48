"""Linear-chain decoding against every path, pytorch-crf, and itself in other batches."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given

from amlr.errors import InputError, ShapeError
from amlr.kernels import viterbi_decode
from kernel_oracles import ChainCase, all_paths, chains, f32, random_chain, zero_chain

ALL_TIED = zero_chain(3, 4, 3, [4, 1, 2])


def decode(case: ChainCase, **options: Any) -> tuple[Any, Any]:
    return viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters, **options)


@example(case=ALL_TIED)
@example(case=zero_chain(1, 1, 1))
@example(case=zero_chain(1, 7, 4))
@example(case=zero_chain(3, 5, 2, [5, 1, 0]))
@given(case=chains())
def test_path_equals_exhaustive_search(case: ChainCase) -> None:
    tags, scores = decode(case)
    assert tags.dtype == np.int32
    assert scores.dtype == np.float32
    for b, length in enumerate(case.lengths_b):
        assert np.all(tags[b, length:] == -1)
        if not length:
            assert scores[b] == 0
            continue
        totals, paths = all_paths(case, b)
        assert scores[b] == totals.max()
        if scores[b] > -np.inf:
            assert tags[b, :length].tolist() == paths[totals.argmax()].tolist()


def test_ties_take_the_lowest_tag_from_the_end_backwards() -> None:
    case = zero_chain(9, 5, 4, [5, 1, 2, 3, 4, 5, 0, 5, 5])
    tags, scores = decode(case)
    valid = np.arange(5) < case.lengths_b[:, None]
    assert np.all(tags == np.where(valid, 0, -1))
    assert not scores.any()
    # Paths (1, 0) and (0, 1) tie: the lower last tag wins, not the lower first one.
    emissions = f32([[[0, 1], [0, 0]]])
    moves = f32([[-1, 1], [0, -1]])
    found, _ = viterbi_decode(emissions, [2], start_y=[0, 0], transitions_yy=moves, end_y=[0, 0])
    assert found.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("batch", "steps", "tags"),
    [
        (9, 60, 9),
        (40, 17, 13),
        (3, 130, 4),
        (200, 12, 9),
        (2, 60, 1),
        (200, 3, 1),
        (2, 70, 40),
    ],
)
def test_batch_mates_and_padding_change_no_bit(batch: int, steps: int, tags: int) -> None:
    case = random_chain(0, batch, steps, tags)
    emissions = case.emissions_bty.copy()
    emissions[np.arange(steps) >= case.lengths_b[:, None]] = np.nan
    together, scores = viterbi_decode(emissions, case.lengths_b, **case.parameters)
    for b, length in enumerate(case.lengths_b):
        alone, score = viterbi_decode(
            emissions[b : b + 1, : max(length, 1)], [length], **case.parameters
        )
        assert together[b, :length].tolist() == alone[0, :length].tolist()
        assert scores[b] == score[0]


@pytest.mark.parametrize(("batch", "steps"), [(1, 60), (200, 3)])
def test_more_tags_than_a_byte_counts(batch: int, steps: int) -> None:
    case = random_chain(6, batch, steps, 300)
    tags, scores = decode(case)
    alone, score = decode(
        ChainCase(
            emissions_bty=case.emissions_bty[:1].repeat(2, axis=0),
            lengths_b=case.lengths_b[:1].repeat(2),
            **case.parameters,
        )
    )
    assert tags[0].tolist() == alone[0].tolist()
    assert scores[0] == score[0]


def test_large_batches_obey_the_tie_rule() -> None:
    rng = np.random.default_rng(4)
    case = random_chain(4, 400, 6, 4)
    whole = {name: np.round(array) for name, array in case.parameters.items()}
    whole["transitions_yy"][rng.random((4, 4)) < 0.2] = -np.inf
    emissions = np.round(case.emissions_bty)
    tags, scores = viterbi_decode(emissions, case.lengths_b, **whole)
    rounded = ChainCase(emissions_bty=emissions, lengths_b=case.lengths_b, **whole)
    for b, length in enumerate(case.lengths_b):
        assert np.all(tags[b, length:] == -1)
        if length:
            totals, paths = all_paths(rounded, b)
            assert scores[b] == totals.max()
            assert tags[b, :length].tolist() == paths[totals.argmax()].tolist()


@pytest.mark.parametrize("whole_numbers", [True, False])
def test_agrees_with_pytorch_crf_on_5000_sequences_each(whole_numbers: bool) -> None:
    torch = pytest.importorskip("torch")
    torchcrf = pytest.importorskip("torchcrf")
    rng = np.random.default_rng(2)
    for round_ in range(10):
        tags, steps = (9, 13, 5)[round_ % 3], 4 + 2 * round_
        case = random_chain(round_, 500, steps, tags)
        lengths = np.maximum(case.lengths_b, 1)
        arrays = [case.emissions_bty, case.start_y, case.transitions_yy, case.end_y]
        if whole_numbers:
            # Spread wide, so that ties (which pytorch-crf may break otherwise) do not decide paths.
            arrays = [np.round(64 * array) + rng.integers(0, 9, array.shape) for array in arrays]
        emissions, start, moves, end = (array.astype(np.float32) for array in arrays)
        crf = torchcrf.CRF(tags, batch_first=True)
        with torch.no_grad():
            crf.start_transitions.copy_(torch.from_numpy(start))
            crf.transitions.copy_(torch.from_numpy(moves))
            crf.end_transitions.copy_(torch.from_numpy(end))
            mask = torch.arange(steps) < torch.from_numpy(lengths)[:, None]
            expected = crf.decode(torch.from_numpy(emissions), mask)
        ours, scores = viterbi_decode(
            emissions, lengths, start_y=start, transitions_yy=moves, end_y=end
        )
        theirs = np.full((500, steps), 0)
        for b, path in enumerate(expected):
            theirs[b, : len(path)] = path
        valid = np.arange(steps) < lengths[:, None]
        rows = np.arange(500)
        gains = np.take_along_axis(emissions, theirs[:, :, None], 2)[:, :, 0].astype(np.float64)
        gains[:, 1:] += moves[theirs[:, :-1], theirs[:, 1:]]
        total = (gains * valid).sum(1) + start[theirs[:, 0]] + end[theirs[rows, lengths - 1]]
        if whole_numbers:
            assert np.array_equal(scores, total)
            same = np.where(valid, ours == theirs, True).all(1)
            assert same.mean() > 0.99  # the rest are ties, equal in score
        else:
            np.testing.assert_allclose(scores, total, rtol=1e-5, atol=1e-5)


def test_float16_emissions_and_forbidden_moves() -> None:
    case = random_chain(3, 12, 9, 5)
    allowed = np.random.default_rng(3).random((5, 5)) < 0.7
    half = case.emissions_bty.astype(np.float16)
    tags, scores = viterbi_decode(half, case.lengths_b, **case.parameters, allowed_yy=allowed)
    moves = np.where(allowed, case.transitions_yy, -np.inf)
    expected, totals = viterbi_decode(
        half.astype(np.float32),
        case.lengths_b,
        **{**case.parameters, "transitions_yy": moves},
    )
    assert np.array_equal(tags, expected)
    assert np.array_equal(scores, totals)
    for row, length in zip(tags, case.lengths_b, strict=True):
        assert all(allowed[i, j] for i, j in pairwise(row[:length]))


def test_nothing_allowed_scores_minus_infinity() -> None:
    case = zero_chain(2, 3, 2)
    _, scores = decode(case, allowed_yy=np.zeros((2, 2), bool))
    assert np.all(scores == -np.inf)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (0, 0, 1)])
def test_empty_batches(shape: tuple[int, int, int]) -> None:
    tags, scores = decode(zero_chain(*shape, lengths=[0] * shape[0]))
    assert tags.shape == shape[:2]
    assert scores.tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["emissions_bty", "start_y", "transitions_yy", "end_y"])
@pytest.mark.parametrize("batch", [1, 3])
def test_not_a_number_is_an_error_naming_the_place(bad: float, name: str, batch: int) -> None:
    case = zero_chain(batch, 50, 3)
    array = getattr(case, name)
    array[tuple(size - 1 for size in array.shape)] = bad
    with pytest.raises(ShapeError, match=rf"{name} holds {bad}"):
        decode(case)


def test_overflow_is_an_error() -> None:
    case = zero_chain(2, 3, 2)
    case.emissions_bty[:] = 3e38
    with pytest.raises(ShapeError, match="overflowed float32"):
        decode(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emissions_bty": np.zeros((3, 2))}, r"emissions_bty must have shape \(B, T, Y\)"),
        ({"emissions_bty": np.zeros((2, 3, 0))}, "no tags"),
        ({"emissions_bty": np.full((2, 3, 2), "x")}, "must hold numbers"),
        ({"lengths_b": [3]}, "lengths_b must be 2 integers"),
        ({"lengths_b": [3.0, 1.0]}, "lengths_b must be 2 integers"),
        ({"lengths_b": [4, 1]}, r"lengths must lie in 0\.\.3, got 1\.\.4"),
        ({"lengths_b": [-1, 1]}, r"lengths must lie in 0\.\.3"),
        ({"start_y": np.zeros(3)}, r"start_y and end_y must have shape \(2,\)"),
        ({"transitions_yy": np.zeros((2, 3))}, r"transitions_yy \(2, 2\)"),
        ({"allowed_yy": np.zeros((2, 2))}, "allowed_yy must be a boolean"),
        ({"allowed_yy": np.ones((3, 3), bool)}, "allowed_yy must be a boolean"),
    ],
)
def test_shapes_are_checked(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "emissions_bty": np.zeros((2, 3, 2), np.float32),
        "lengths_b": [3, 1],
        "start_y": np.zeros(2),
        "transitions_yy": np.zeros((2, 2)),
        "end_y": np.zeros(2),
    }
    with pytest.raises(ShapeError, match=message):
        viterbi_decode(**{**arguments, **change})


def test_unknown_backend() -> None:
    with pytest.raises(InputError, match="use numpy or cuda"):
        decode(zero_chain(1, 2, 2), backend="triton")
