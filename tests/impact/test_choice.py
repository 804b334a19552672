"""The choice of a start and its regret."""

import numpy as np
import pandas as pd
import pytest

from replicate.impact import choice
from replicate.impact.scores import PREDICTORS, signal

X = np.random.default_rng(0).normal(size=40)


def test_regret_is_a_share_of_the_best_gain():
    assert choice.regret([0, 5, 1], [0.1, 0.3, 0.8]) == pytest.approx(0.625)
    assert choice.regret([0, 1, 5], [0.1, 0.3, 0.7]) == 0.0
    assert choice.regret([5, 1], [-0.1, 0.1]) == pytest.approx(2.0)
    assert choice.regret_of_chance([0.1, 0.3, 0.8]) == pytest.approx(0.5)


def test_chance_is_the_mean_over_choices():
    gains = np.abs(X) + 0.01
    regrets = [choice.regret(np.arange(40) == k, gains) for k in range(40)]
    assert choice.regret_of_chance(gains) == pytest.approx(np.mean(regrets))


def test_without_a_gain_there_is_no_share_of_it():
    for gains in ([0.0, -0.1], []):
        with pytest.raises(ValueError, match="gains: expected at least one above 0"):
            choice.regret_of_chance(gains)


def test_signals_and_choice():
    assert signal(1.0, 3.0, 0.5) == -2.0
    assert signal(1.0, 3.0, 0.5, kind="[V - Delta]+") == 0.0
    assert signal(4.0, 1.0, 0.5, kind="V - sqrt(V Delta)") == 2.0
    assert signal(4.0, 1.0, 0.5, kind="kappa") == 0.5
    assert choice.choose_checkpoint([1.0, 3.0, 3.0, 2.0]) == 1
    for bad in ([], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="scores"):
            choice.choose_checkpoint(bad)


def test_every_predictor_is_a_number_at_every_checkpoint():
    """A table with the columns that :func:`replicate.runs.tables.per_checkpoint` gives has all of them."""
    columns = ("S", "V", "H", "J0", "entropy", "gradient_norm_squared")
    frame = pd.DataFrame({name: np.abs(X[:5]) + i for i, name in enumerate(columns)})
    found = {name: of(frame) for name, of in PREDICTORS.items()}
    assert all(np.isfinite(values).all() and len(values) == 5 for values in found.values())
    assert found["J_0 (1 - J_0)"].tolist() == pytest.approx((frame.J0 * (1 - frame.J0)).tolist())
