"""Influences: their mean is the statistic, their spread its uncertainty."""

import numpy as np
import pytest
from scipy import stats

from replicate.statistics.jackknife import influence, interval


def ratio(means):
    return means[:, 0] / np.sqrt(means[:, 1])


def test_of_a_mean_they_are_the_units_own_numbers():
    columns = np.random.default_rng(0).normal(size=(7, 2))
    assert influence(columns, lambda m: m[:, 1]) == pytest.approx(columns[:, 1], rel=1e-12)


def test_they_are_the_jackknife_done_by_hand():
    columns = np.random.default_rng(1).uniform(1, 2, size=(9, 2))
    whole = ratio(columns.mean(0)[None])[0]
    left = np.array([ratio(np.delete(columns, i, axis=0).mean(0)[None])[0] for i in range(9)])
    found = influence(columns, ratio)
    assert found.mean() == pytest.approx(whole, rel=1e-12)
    assert found - found.mean() == pytest.approx(8 * (left.mean() - left), rel=1e-8)


def test_their_spread_is_the_statistics_own():
    """The standard error of one sample against the spread of the statistic over 4000 samples."""
    rng = np.random.default_rng(2)
    draws = rng.uniform(0, 1, size=(4000, 60, 2)) ** 3
    over = ratio(draws.mean(1)).std()
    errors = [influence(sample, ratio).std(ddof=1) / 60**0.5 for sample in draws[:200]]
    assert np.mean(errors) == pytest.approx(over, rel=0.1)


def test_the_interval_is_students():
    values = np.random.default_rng(3).normal(size=12)
    mean, low, high = interval(values)
    found = stats.ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((values.mean(), found.low, found.high))


def test_a_single_unit_is_refused():
    with pytest.raises(ValueError, match="at least 2 units, got 1"):
        influence(np.ones((1, 2)), ratio)
