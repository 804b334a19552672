"""Statistics over checkpoints against libraries."""

import numpy as np
import pytest
from scipy import stats as reference

from replicate.statistics import series

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 40))


def test_correlations_agree_with_scipy_and_constants_give_nan():
    assert series.spearman(X, Y) == pytest.approx(reference.spearmanr(X, Y)[0])
    assert series.pearson(X, Y) == pytest.approx(np.corrcoef(X, Y)[0, 1])
    assert np.isnan(series.spearman(np.ones(5), np.arange(5.0)))


def test_zscores_are_centred_on_the_scale_of_the_population():
    assert series.zscore(X) == pytest.approx(reference.zscore(X))
    assert series.zscore(np.full(4, 2.0)).tolist() == [0.0] * 4
