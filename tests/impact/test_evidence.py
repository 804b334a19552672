"""Evidence by ladder: planted laws are found on ladders that no fit has seen, wrong ones are not."""

import numpy as np
import pandas as pd
import pytest

from replicate.impact import decisions, evidence, law
from replicate.statistics.splines import quantile_knots, spline_basis

BUDGETS = (5, 20, 80)


@pytest.fixture
def frame():
    """Six ladders of 30 rungs whose gains follow ``good`` with one constant, while ``bad`` runs against them."""
    rng = np.random.default_rng(0)
    parts = []
    for i in range(6):
        J0 = np.linspace(0.05, 0.95, 30)
        good = J0 * (1 - J0) * np.exp(0.3 * rng.normal(size=30)) / 40
        rows = pd.DataFrame(
            {"ladder": f"x{i}", "role": "locked" if i > 3 else "development", "step": 25 * np.arange(30)}
        )
        rows = rows.assign(
            tokens=3072 * rows.step,
            J0=J0,
            J0_held_out=J0,
            good=good,
            bad=-good,
            labels=4,
            filler=8,
            cooled=i % 2 == 0,
        )
        for n in BUDGETS:
            gain = law.SATURATIONS["exponential"](good, J0, float(n), 1.0) + 0.003 * rng.normal(size=30)
            rows[f"gain_{n}"], rows[f"post_{n}"] = gain, J0 + gain
        rows["gain"] = rows[[f"gain_{n}" for n in BUDGETS]].mean(axis=1)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def test_left_out_skill_tells_a_law_from_its_opposite_and_from_a_spline(frame):
    frame["spline"] = frame.J0
    bases = {"spline": spline_basis(quantile_knots(frame.J0, 5))}
    skill = evidence.left_out_skill(frame, ["good", "bad", "spline"], bases=bases)
    assert skill.groupby("score").ladder.nunique().eq(6).all()
    table = evidence.summary(skill, "r2").set_index("score")
    assert list(table.index) == ["good", "spline", "bad"]
    assert table.low["good"] > 0.6
    assert table.high["bad"] < 0.05  # a line that may not fall is the mean
    ahead = evidence.summary(skill, "r2", against="good").set_index("score")
    assert "good" not in ahead.index
    assert ahead.high["spline"] < 0
    ranks = evidence.summary(skill, "spearman").set_index("score")
    assert ranks["mean"]["bad"] == 0.0  # flat: it orders nothing


def test_locked_skill_fits_on_development_ladders_alone(frame):
    development, locked = evidence.unseen(frame)
    assert set(locked.ladder) == {"x4", "x5"}
    found = evidence.locked_skill(development, locked, ["good"])
    assert list(found.ladder) == ["x4", "x5"]
    assert (found.r2 > 0.6).all()
    worse = evidence.locked_skill(development.assign(gain=-development.gain), locked, ["good"])
    assert (worse.r2 < 0.05).all()
    with pytest.raises(ValueError, match="locked"):
        evidence.unseen(development)


def test_residuals_are_those_of_the_fit_to_the_others(frame):
    errors = evidence.residuals(frame, "good")
    own, others = frame[frame.ladder == "x2"], frame[frame.ladder != "x2"]
    slope, intercept = np.polyfit(others.good, others.gain, 1)
    assert np.allclose(errors[own.index], own.gain - (intercept + slope * own.good))
    worst = evidence.extremes(frame, errors, 3)
    assert len(worst) == 3
    assert worst.error.abs().iloc[0] == errors.abs().max()


def test_bands_are_means_over_ladders(frame):
    long = law.long(frame, BUDGETS)
    bands = evidence.by_band(long, {"twice": 2 * long.gain}, edges=(0.0, 0.5, 1.0))
    assert len(bands) == 2 * len(BUDGETS)
    row = bands[(bands.band == "0.5 to 1") & (bands.n == 20)].iloc[0]
    rows = frame[frame.J0 > 0.5]
    assert row.gain == pytest.approx(rows.groupby("ladder").gain_20.mean().mean())
    assert row.twice == pytest.approx(2 * row.gain)
    assert row.low < row.gain < row.high


def test_forecasts_saturate_and_are_judged_by_ladder(frame):
    forecast = frame[["ladder", "step"]].assign(budget=20, linear=20 * frame.good, frozen=-1.0)
    gains = frame[["ladder", "step"]].assign(budget=20, gain=frame.gain_20)
    table = evidence.forecasts(forecast, frame, gains)
    room = 1 - table.J0
    assert np.allclose(table[evidence.SATURATED], room * (1 - np.exp(-20 * frame.good / room)))
    marks = evidence.forecast_skill(table, [evidence.SATURATED, evidence.FROZEN]).set_index(
        ["forecast", "ladder"]
    )
    assert (marks.r2[evidence.SATURATED] > 0.9).all()
    assert (marks.r2[evidence.FROZEN] < 0).all()
    assert marks.bias[evidence.FROZEN].iloc[0] == pytest.approx(
        -1 - frame.gain_20[frame.ladder == "x0"].mean()
    )


def test_costs_count_whole_sequences():
    found = evidence.costs_of({"FILLER": 8, "PROMPTS": 16, "GROUP_SIZE": 8, "MEASURE_PROMPTS": 128})
    assert found == decisions.Costs(update=16 * 8 * 15, measure=128 * 14)


def test_regrets_have_every_ladder_total_and_policy_and_the_laws_forecast_is_good(frame):
    costs = {name: decisions.Costs(update=1920, measure=100) for name in frame.ladder.unique()}
    fitted = law.fit(law.long(frame, BUDGETS), form="exponential", score="good")
    scores = {"good": lambda rows: rows.good, "bad": lambda rows: rows.bad}
    table = evidence.regrets(frame, costs, fitted, [10, 20], scores)
    assert set(table.total) == {10, 20}
    summary = evidence.regret_summary(table).set_index(["total", "policy"])
    assert decisions.ORACLE not in summary.index.get_level_values("policy")
    for total in (10, 20):
        assert summary["mean"][total, evidence.FORECAST] < summary["mean"][total, decisions.CHANCE]
        assert summary["mean"][total, "bad"] > summary["mean"][total, evidence.FORECAST]
    reached = evidence.tokens_to(frame, costs, scores, target=0.9)
    assert reached.reached["just pretrain on"] == 6
