"""Statistics over checkpoints against libraries, closed forms and planted structure."""

import numpy as np
import pytest
from scipy import stats as reference

from replicate.statistics import series

RNG = np.random.default_rng(0)
X, Y, Z = RNG.normal(size=(3, 40))


def test_correlations_agree_with_scipy_and_constants_give_nan():
    assert series.spearman(X, Y) == pytest.approx(reference.spearmanr(X, Y)[0])
    assert series.pearson(X, Y) == pytest.approx(np.corrcoef(X, Y)[0, 1])
    assert np.isnan(series.spearman(np.ones(5), np.arange(5.0)))


def test_partial_correlation_against_the_textbook_formula():
    rank = [reference.rankdata(v) for v in (X + Z, Y + Z, Z)]
    a, b, c = (np.corrcoef(rank[i], rank[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = (a - b * c) / np.sqrt((1 - b**2) * (1 - c**2))
    assert series.partial_spearman(X + Z, Y + Z, Z) == pytest.approx(expected)
    assert abs(expected) < abs(series.spearman(X + Z, Y + Z))  # what Z explains is gone


def test_block_intervals_of_smooth_series_are_wider_than_shuffled_ones():
    """Two independent random walks: neighbours are alike, and an interval that ignored it would be too narrow."""
    walks = np.random.default_rng(1).normal(size=(2, 80)).cumsum(axis=1)
    blocks = series.block_interval(series.pearson, *walks, resamples=400, seed=0)
    order = np.random.default_rng(2).permutation(80)
    shuffled = series.block_interval(series.pearson, *walks[:, order], resamples=400, seed=0)
    assert blocks.value == pytest.approx(shuffled.value)
    assert blocks.high - blocks.low > 1.3 * (shuffled.high - shuffled.low)
    again = series.block_interval(series.pearson, *walks, resamples=400, seed=0)
    assert (again.low, again.high) == (blocks.low, blocks.high)


def test_shift_test_accepts_alignment_and_rejects_its_absence():
    bump = np.exp(-0.5 * ((np.arange(60) - 30) / 5) ** 2)
    assert series.shift_p_value(series.spearman, bump, bump) == pytest.approx(1 / 60)
    assert series.shift_p_value(series.spearman, np.roll(bump, 25), bump) > 0.3


def test_left_out_prediction_rewards_signal_and_punishes_noise():
    line = np.linspace(0, 1, 30)
    assert series.left_out_r2(line, 2 * line + 1) == pytest.approx(1.0)
    assert series.left_out_r2(np.random.default_rng(3).normal(size=(30, 8)), line) < 0.5
    assert series.left_out_r2(line, 2 * line + 1, gap=3) == pytest.approx(1.0)


def test_left_out_prediction_does_not_see_the_point_it_predicts():
    y = np.zeros(20)
    y[7] = 1.0
    indicator = y.copy()  # predicts the outlier perfectly, but only if it may look at it
    assert series.left_out_r2(indicator, y) < 0.1


def test_hac_slope_of_standardised_series():
    x = np.random.default_rng(4).normal(size=400)
    slope, error, p = series.hac_slope(x, 2 * x + np.random.default_rng(5).normal(size=400))
    assert slope == pytest.approx(2 / np.sqrt(5), abs=0.05)
    assert p < 1e-6
    assert 0 < error < 0.1


def test_a_rising_fit_does_not_turn_a_score_upside_down():
    x = np.arange(10.0)
    assert series.affine_fit(x, -x).tolist() == pytest.approx((-x).tolist())
    assert series.affine_fit(x, -x, rising=True).tolist() == pytest.approx([-4.5] * 10)
    assert series.affine_fit(x, 2 * x, rising=True).tolist() == pytest.approx((2 * x).tolist())
