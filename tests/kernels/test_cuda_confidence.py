"""The confidence kernel against forward-backward in float64."""

import itertools

import numpy as np
import pytest

from amlr.errors import ShapeError
from amlr.kernels import tag_marginals
from amlr.kernels.launch import KernelLibrary
from shims.cases import ChainCase, chain_case
from shims.full_decoders import FullDecoders
from shims.shim_device import set_schedule

# Measured: 2e-6 on sequences of 128 steps.
ATOL = 1e-5


def assert_close(decoders: FullDecoders, case: ChainCase, temperature: float = 1.0) -> None:
    tags, _ = decoders.viterbi_decode(*case.arguments())
    found = decoders.path_confidence(
        case.emissions_bty,
        case.lengths_b,
        tags,
        case.start_y,
        case.transitions_yy,
        case.end_y,
        case.allowed_yy,
        temperature=temperature,
    )
    cooled = ChainCase(
        emissions_bty=case.emissions_bty.astype(np.float64) / temperature,
        lengths_b=case.lengths_b,
        start_y=case.start_y.astype(np.float64) / temperature,
        transitions_yy=case.transitions_yy.astype(np.float64) / temperature,
        end_y=case.end_y.astype(np.float64) / temperature,
        allowed_yy=case.allowed_yy,
    )
    marginals = tag_marginals(cooled.emissions_bty, cooled.lengths_b, **cooled.parameters())
    valid = tags >= 0
    expected = np.take_along_axis(marginals, np.maximum(tags, 0)[:, :, None], 2)[:, :, 0] * valid
    np.testing.assert_allclose(found.confidence_bt, expected, rtol=0, atol=ATOL)
    assert np.all(found.confidence_bt[~valid] == 0)
    for b in range(len(case.lengths_b)):
        np.testing.assert_allclose(
            found.log_total_b[b], _log_total(cooled, b), rtol=1e-5, atol=ATOL
        )


def _log_total(case: ChainCase, b: int) -> float:
    em = case.emissions_bty[b, : case.lengths_b[b]]
    if not len(em):
        return 0.0
    moves = case.transitions_yy
    if case.allowed_yy is not None:
        moves = np.where(case.allowed_yy, moves, -np.inf)
    forward = case.start_y + em[0]
    for here in em[1:]:
        forward = np.logaddexp.reduce(forward[:, None] + moves, axis=0) + here
    return float(np.logaddexp.reduce(forward + case.end_y))


@pytest.mark.parametrize("tags", [2, 9, 32])
def test_equals_forward_backward(library: KernelLibrary, decoders: FullDecoders, tags: int) -> None:
    for steps, constrained in itertools.product((1, 2, 4, 5, 13), (False, True)):
        set_schedule(library, steps % 3)
        assert_close(decoders, chain_case(steps, 5, steps, tags, constrained=constrained))


def test_long_sequences_keep_their_digits(decoders: FullDecoders) -> None:
    assert_close(decoders, chain_case(0, 1, 512, 9))


def test_temperature(decoders: FullDecoders) -> None:
    assert_close(decoders, chain_case(2, 4, 11, 9), temperature=1.7)


def test_confidence_equals_exhaustive_search(decoders: FullDecoders) -> None:
    case = chain_case(7, 1, 5, 3)
    tags, _ = decoders.viterbi_decode(*case.arguments())
    emissions, lengths, *parts = case.arguments()
    found = decoders.path_confidence(emissions, lengths, tags, *parts)
    paths = list(itertools.product(range(3), repeat=5))
    weights = np.array([np.exp(_score(case, path)) for path in paths])
    weights /= weights.sum()
    for first, last in itertools.combinations_with_replacement(range(5), 2):
        agree = [path[first : last + 1] == tuple(tags[0, first : last + 1]) for path in paths]
        assert found.span(0, first, last) == pytest.approx(weights[agree].sum(), abs=ATOL)
    assert found.log_total_b[0] == pytest.approx(
        np.log(sum(np.exp(_score(case, path)) for path in paths)), abs=1e-4
    )


def _score(case: ChainCase, path: tuple[int, ...]) -> float:
    score = float(case.start_y[path[0]] + case.end_y[path[-1]])
    score += sum(float(case.emissions_bty[0, t, tag]) for t, tag in enumerate(path))
    return score + sum(float(case.transitions_yy[pair]) for pair in itertools.pairwise(path))


def test_nan_is_an_error(decoders: FullDecoders) -> None:
    case = chain_case(0, 3, 9, 9)
    tags, _ = decoders.viterbi_decode(*case.arguments())
    case.emissions_bty[0, 4, 7] = np.nan
    emissions, lengths, *parts = case.arguments()
    with pytest.raises(ShapeError, match="emissions_bty holds nan"):
        decoders.path_confidence(emissions, lengths, tags, *parts)


def test_paths_and_temperatures_are_checked(decoders: FullDecoders) -> None:
    case = chain_case(0, 3, 9, 9)
    emissions, lengths, *parts = case.arguments()
    tags = np.zeros((3, 9), np.int32)
    with pytest.raises(ShapeError, match="tags_bt"):
        decoders.path_confidence(emissions, lengths, tags[:, :4], *parts)
    with pytest.raises(ShapeError, match="tags_bt"):
        decoders.path_confidence(emissions, lengths, tags - 1, *parts)
    with pytest.raises(ShapeError, match="temperature"):
        decoders.path_confidence(emissions, lengths, tags, *parts, temperature=0.0)
