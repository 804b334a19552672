"""The choice of a start, its regret, and the table of predictors."""

import numpy as np
import pandas as pd
import pytest

from replicate.impact import choice
from replicate.impact.scores import PREDICTORS, signal

X, Y, Z = np.random.default_rng(0).normal(size=(3, 40))


def test_regret():
    assert choice.regret([0, 5, 1], [0.1, 0.3, 0.7]) == pytest.approx(0.4)
    assert choice.regret([0, 1, 5], [0.1, 0.3, 0.7]) == 0.0


def test_predictors_table_has_the_target_as_its_best_row():
    frame = pd.DataFrame({"gain": Y, "J0": X})
    table = choice.predictors_table(
        frame, {"itself": Y, "noise": Z, "J0": X}, "gain", given="J0", resamples=200, seed=0
    ).set_index("predictor")
    assert table.spearman["itself"] == 1.0
    assert table.regret["itself"] == 0.0
    assert table.low["noise"] < 0 < table.high["noise"]
    assert np.isnan(table.partial["J0"])


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
