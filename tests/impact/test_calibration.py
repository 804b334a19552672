"""The law's constant and its worth are those of the published study's records, by another route."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from replicate.runs.score import calibration

STUDY = Path(__file__).parents[2] / "results" / "study"
ROLES = {"development": "d", "locked": "l"}


@pytest.fixture(scope="module")
def found():
    return calibration("results/study")


def rungs(role):
    """J_0, score and gains of every rung of the ladders of a role, straight from the study's files."""
    parts = pd.read_parquet(STUDY / "components.parquet")
    parts = parts[(parts.policy == "categorical") & (parts.advantage == "grpo") & (parts.layer == -1)]
    key = ["ladder", "step"]
    parts = parts.set_index(key).astype({"kappa": float, "empirical": float})
    J0 = pd.read_parquet(STUDY / "checkpoints.parquet").set_index(key).reward.astype(float)
    gains = pd.read_parquet(STUDY / "gains.parquet").astype({"gain": float})
    gains = gains.groupby([*key, "budget"]).gain.mean().unstack()
    table = gains.assign(J0=J0, s=parts.kappa / parts.empirical**0.5).reset_index()
    return table[table.ladder.str.startswith(ROLES[role])]


def test_the_constant_is_a_fit_by_hand(found):
    """One dimension, one number: all ladders have as many rungs and budgets, so that all rows weigh the same."""
    table = rungs("development")
    budgets = [name for name in table if isinstance(name, int)]
    assert tuple(budgets) == found.budgets
    gains, room = table[budgets].to_numpy(), 1 - table.J0.to_numpy()[:, None]
    push = table.s.to_numpy()[:, None] * np.array(budgets)

    def errors(log_c):
        return np.square(room * (1 - np.exp(-np.exp(log_c) * push / room)) - gains).sum()

    best = optimize.minimize_scalar(errors, bounds=(-6, 3), method="bounded", options={"xatol": 1e-10})
    assert found.law.form == "exponential"
    assert found.law.c == pytest.approx(np.exp(best.x), rel=1e-5)


def test_its_worth_is_that_of_the_locked_ladders(found):
    """Rank correlations straight from the files; a line keeps ranks."""
    table = rungs("locked")
    mean = table[[5, 10, 20, 40]].mean(axis=1)
    ranks = [stats.spearmanr(own.s, mean[own.index]).statistic for _, own in table.groupby("ladder")]
    assert found.rank.n == len(ranks) == found.ladders["locked"]
    assert found.rank.mean == pytest.approx(np.mean(ranks), abs=1e-12)
    hump = [
        stats.spearmanr(own.J0 * (1 - own.J0), mean[own.index]).statistic
        for _, own in table.groupby("ladder")
    ]
    assert found.ahead.mean == pytest.approx(np.mean(ranks) - np.mean(hump), abs=1e-12)
    assert found.rank.low > found.rank_bound
    assert not found.r2.low > found.r2_bound


def test_the_nearest_budget_is_so_by_ratio(found):
    assert [found.nearest(n) for n in (1, 7, 8, 60, 10**6)] == [5, 5, 10, 80, 160]


def test_a_study_that_is_not_there_is_refused_by_name(home):
    with pytest.raises(ValueError, match="nowhere: no published study"):
        calibration("nowhere")
