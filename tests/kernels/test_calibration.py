"""Reliability bins, expected calibration error and the fitted temperature on known answers."""

import numpy as np
import pytest

from amlr.errors import ShapeError
from amlr.kernels import (
    Units,
    entity_marginals,
    expected_calibration_error,
    fit_temperature,
    is_tuning_half,
    negative_log_likelihood,
    reliability_bins,
    segmentation_nll,
)


def test_bins_and_error_by_hand() -> None:
    scores = [0.05, 0.95, 0.9, 1.0, 0.55]
    right = [False, True, True, False, True]
    bins = reliability_bins(scores, right, bins=2)
    assert bins.counts_m.tolist() == [1, 4]
    assert bins.accuracies_m.tolist() == [0.0, 0.75]
    np.testing.assert_allclose(bins.mean_scores_m, [0.05, 0.85])
    expected = (1 * 0.05 + 4 * 0.1) / 5
    assert expected_calibration_error(scores, right, bins=2) == pytest.approx(expected)


def test_empty_bins_and_no_answers() -> None:
    bins = reliability_bins([0.25], [True], bins=4)
    assert np.isnan(bins.mean_scores_m).tolist() == [True, False, True, True]
    assert np.isnan(expected_calibration_error([], []))
    assert np.isnan(negative_log_likelihood([], []))


def test_likelihood_by_hand() -> None:
    expected = -(np.log(0.8) + np.log(0.7)) / 2
    assert negative_log_likelihood([0.8, 0.3], [True, False]) == pytest.approx(expected)
    assert np.isfinite(negative_log_likelihood([0.0], [True]))


@pytest.mark.parametrize("truth", [0.5, 3.0])
def test_fitted_temperature_recovers_the_true_one(truth: float) -> None:
    rng = np.random.default_rng(0)
    posts = 4000
    scores = (3 * rng.standard_normal((posts, 1))).astype(np.float32)
    units = Units(np.arange(posts + 1), np.zeros(posts, int), np.zeros(posts, int), scores)
    lengths = np.ones(posts, int)
    right = rng.random(posts) < entity_marginals(units, lengths, temperature=truth)[:, 0]

    def loss(temperature: float) -> float:
        found = entity_marginals(units, lengths, temperature=temperature)[:, 0]
        return negative_log_likelihood(found, right)

    temperature = fit_temperature(loss)
    assert temperature == pytest.approx(truth, rel=0.15)
    gold = np.where(right, 0, -1)
    likelihood = fit_temperature(lambda t: segmentation_nll(units, lengths, gold, temperature=t))
    assert likelihood == pytest.approx(temperature, rel=0.02)
    before = entity_marginals(units, lengths)[:, 0]
    after = entity_marginals(units, lengths, temperature=temperature)[:, 0]
    assert expected_calibration_error(after, right) < 0.03
    assert expected_calibration_error(before, right) > expected_calibration_error(after, right)


@pytest.mark.parametrize("wanted", [0.03, 0.9, 7.3, 41.0])
def test_temperature_is_found_past_a_shallower_valley(wanted: float) -> None:
    def loss(temperature: float) -> float:
        distance = abs(np.log(temperature / wanted))
        # Another valley, wider and less deep, at the far end.
        other = abs(np.log(temperature / (0.05 if wanted > 1 else 20)))
        return float(min(distance, 0.5 + 0.1 * other))

    assert fit_temperature(loss) == pytest.approx(wanted, rel=2e-3)


def test_halves_are_stable_and_even() -> None:
    ids = [f"post-{i}" for i in range(1000)]
    half = is_tuning_half(ids)
    assert 400 < half.sum() < 600
    assert is_tuning_half(ids[:3]).tolist() == half[:3].tolist()


def test_options_are_checked() -> None:
    units = Units([0, 1], [0], [0], np.zeros((1, 1), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="scores must lie in"):
        reliability_bins([1.5], [True])
    with pytest.raises(ShapeError, match="1-D of one length"):
        reliability_bins([0.5], [True, False])
    with pytest.raises(ShapeError, match="bins must be at least 1"):
        reliability_bins([0.5], [True], bins=0)
    with pytest.raises(ShapeError, match="temperatures must satisfy"):
        fit_temperature(lambda t: t, low=2, high=1)
    with pytest.raises(ShapeError, match="gold_u must have shape"):
        segmentation_nll(units, [1], [0, 0])
