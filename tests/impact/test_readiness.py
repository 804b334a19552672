"""Figure 5 and its baselines, on ladders with a planted truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from replicate.impact import readiness
from replicate.impact.readiness import CALIBRATED, CHANCE, NO_SCORE, SCALE_FREE, SPLINE
from replicate.statistics.splines import quantile_knots, spline_basis

LADDERS, RUNGS = 5, 40
SCORES = {
    "right": lambda frame: frame.right,
    "J_0": lambda frame: frame.J0,
    "J_0 (1 - J_0)": lambda frame: frame.J0 * (1 - frame.J0),
    "constant": lambda frame: 0 * frame.J0,
}


@pytest.fixture
def frame():
    """The gain is a hump in J_0 times a factor of the rung's own, which ``right`` knows and no function of J_0 does."""
    rng = np.random.default_rng(0)
    parts = []
    for i in range(LADDERS):
        J0 = np.sort(rng.uniform(0.02, 0.98, RUNGS))
        right = J0 * (1 - J0) * np.exp(0.4 * rng.normal(size=RUNGS))
        gain = 0.8 * right + 0.003 * rng.normal(size=RUNGS)
        own = {"ladder": f"x{i}", "step": np.arange(RUNGS), "J0": J0, "J0_held_out": J0 + 0.001}
        parts.append(pd.DataFrame({**own, "right": right, "gain": gain}))
    return pd.concat(parts, ignore_index=True)


def test_the_calibrated_form_is_fitted_on_the_other_ladders(frame):
    table = readiness.combined(frame, {"right": frame.right})
    own = table[(table.score == "right") & (table.ladder == "x2")]
    others = frame[frame.ladder != "x2"]
    line = stats.linregress(others.right, others.gain + others.J0_held_out - others.J0)
    expected = own.J0 + line.intercept + line.slope * own.value
    assert own.calibrated.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-10)
    # A ladder's own gains have no say in its own prediction.
    moved = frame.assign(gain=frame.gain + 5.0 * (frame.ladder == "x2"))
    again = readiness.combined(moved, {"right": frame.right})
    chosen = (again.score == "right") & (again.ladder == "x2")
    assert again[chosen].calibrated.to_numpy() == pytest.approx(own.calibrated.to_numpy())


def test_the_scale_free_form_is_within_ladders(frame):
    table = readiness.combined(frame, {"right": frame.right})
    own = table[(table.score == "right") & (table.ladder == "x1")]
    z = stats.zscore(own.J0) + stats.zscore(own.value)
    assert own.scale_free.to_numpy() == pytest.approx(np.asarray(z))
    doubled = readiness.combined(frame, {"right": frame.right * (1 + (frame.ladder == "x1"))})
    assert doubled.scale_free.to_numpy() == pytest.approx(table.scale_free.to_numpy())


def test_without_a_score_it_is_present_reward_and_a_constant(frame):
    table = readiness.combined(frame, {})
    assert set(table.score) == {NO_SCORE}
    shift = (table.calibrated - table.J0).groupby(table.ladder)
    assert shift.std().max() < 1e-12
    assert shift.mean().min() > 0


def test_a_right_score_raises_the_correlation_and_a_reversed_one_does_nothing(frame):
    table = readiness.combined(frame, {"right": frame.right, "reversed": -frame.right})
    rises = readiness.rises(table).set_index(["score", "form", "ladder"]).sort_index()
    assert (rises.loc[("right", CALIBRATED)].over_J0 > 0).all()
    assert (rises.loc[("reversed", CALIBRATED)].over_J0 == 0).all()  # b = 0, to the last digit
    own = table[(table.score == "right") & (table.ladder == "x0")]
    for form, column in ((CALIBRATED, "calibrated"), (SCALE_FREE, "scale_free")):
        row, r = rises.loc[("right", form, "x0")], stats.pearsonr(own[column], own.post)[0]
        assert row.r == pytest.approx(r)
        assert row.over_J0 == pytest.approx(r - stats.pearsonr(own.J0, own.post)[0], abs=1e-11)
        assert row.over_score == pytest.approx(r - stats.pearsonr(own.value, own.post)[0])
    rmse = readiness.errors(table).pivot(index="ladder", columns="score", values="rmse")
    assert (rmse.right < 0.2 * rmse[NO_SCORE]).all()
    assert rmse.reversed.tolist() == pytest.approx(rmse[NO_SCORE].tolist())


def test_judged_by_rank_partial_unseen_ladder_and_regret(frame):
    spline = spline_basis(quantile_knots(frame.J0, 5))
    judged = readiness.judge(frame, SCORES, "gain", spline=spline)
    assert len(judged) == LADDERS * (len(SCORES) + 2)
    mean = judged.groupby("score")[["spearman", "partial", "r2", "regret"]].mean()
    assert mean.spearman["right"] > 0.97
    assert mean.partial["right"] > 0.9
    assert mean.partial[["J_0", "J_0 (1 - J_0)", SPLINE]].isna().all()
    assert mean.r2["right"] > 0.95
    assert 0.2 < mean.r2[SPLINE] < 0.8
    assert mean.r2["J_0"] < 0.2
    assert mean.spearman["constant"] == 0.0
    assert mean.regret["right"] < 0.05
    assert 0.3 < mean.regret[CHANCE] < 0.9
    assert np.isnan(mean.spearman[CHANCE])


def test_the_spline_is_fitted_without_the_ladder_it_is_judged_on(frame):
    """The score of one ladder is turned upside down: whoever had seen it would know."""
    turned = frame.assign(gain=frame.gain.where(frame.ladder != "x3", 0.3 - frame.gain))
    spline = spline_basis(quantile_knots(frame.J0, 5))
    judged = readiness.judge(turned, {"right": SCORES["right"]}, "gain", spline=spline)
    own = judged.set_index(["score", "ladder"])
    assert own.spearman[SPLINE, "x3"] < -0.5
    assert own.r2[SPLINE, "x3"] < -0.5


def test_ahead_is_the_difference_ladder_by_ladder(frame):
    spline = spline_basis(quantile_knots(frame.J0, 5))
    judged = readiness.judge(frame, SCORES, "gain", spline=spline)
    table = readiness.ahead(judged, "r2", ["right", "J_0"], [SPLINE, "J_0"])
    assert list(zip(table.score, table.rival, strict=True)) == [
        ("right", SPLINE),
        ("right", "J_0"),
        ("J_0", SPLINE),
    ]
    wide = judged.pivot(index="ladder", columns="score", values="r2")
    assert table["mean"][0] == pytest.approx((wide.right - wide[SPLINE]).mean())
    assert table.low[0] > 0 > table.high[2]
