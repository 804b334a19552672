"""The law of impact: its forms, and a fit that finds what was planted and throws out what was not."""

import numpy as np
import pandas as pd
import pytest

from replicate.impact import law
from replicate.impact.law import POWERS, SATURATIONS, Law, fit, left_out, long, predict, skill

BUDGETS = (5, 10, 20, 40)
BOUNDED = ("exponential", "logistic")


def _ladders(form="exponential", c=0.2, b=1.0, ladders=5, rungs=40, noise=0.004, seed=0):
    """Study frames: J_0 climbs, the law's score is a hump of its own with spikes, and gains obey the law."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(ladders):
        t = np.linspace(-4, 4, rungs) + rng.normal(0, 0.3)
        J0 = 1 / (1 + np.exp(-t))
        score = J0 * (1 - J0) * np.exp(rng.normal(0, 0.6, rungs))
        frame = pd.DataFrame({"ladder": f"ladder {i}", "step": 25 * np.arange(rungs), "J0": J0, "law": score})
        frame["hump"] = J0 * (1 - J0)
        for n in BUDGETS:
            truth = SATURATIONS[form](score, J0, float(n) ** b, c)
            frame[f"gain_{n}"] = truth + rng.normal(0, noise, rungs)
            frame[f"post_{n}"] = J0 + frame[f"gain_{n}"]
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("form", SATURATIONS)
@pytest.mark.parametrize("s", [0.3, -0.3])
def test_the_first_update_gains_c_times_the_score(form, s):
    J0, small = np.array([0.01, 0.3, 0.5, 0.99]), 1e-6
    slope = SATURATIONS[form](np.full(4, s), J0, np.full(4, small), 0.7) / small
    np.testing.assert_allclose(slope, 0.7 * s, rtol=1e-4)
    assert SATURATIONS[form](np.array([s]), np.array([0.4]), np.zeros(1), 0.7) == 0


@pytest.mark.parametrize("form", BOUNDED)
def test_no_reward_leaves_the_unit_interval(form):
    J0 = np.array([0.0, 1e-300, 1e-12, 0.2, 0.5, 1 - 1e-12, 1.0])
    for push in (0.0, 1e-9, 0.1, 10.0, 1e5):
        up, down = (
            SATURATIONS[form](np.full(7, sign * push), J0, np.full(7, 40.0), 1.0) for sign in (1.0, -1.0)
        )
        for gain in (up, down):
            assert np.isfinite(gain).all()
        assert ((up >= 0) & (up <= 1 - J0 + 1e-15)).all()
        assert ((down <= 0) & (down >= -J0 - 1e-15)).all()
    np.testing.assert_allclose(up[:-1], 1 - J0[:-1])  # whatever room there is, is used up in the end...
    assert (up[-1], down[0]) == (0.0, 0.0)  # ... and none is invented


def test_logistic_is_the_logit_pushed_at_one_speed():
    J0, s, n = np.array([0.03, 0.4, 0.9]), np.array([0.01, 0.05, 0.02]), 7.0
    logit = np.log(J0 / (1 - J0)) + 0.3 * n * s / (J0 * (1 - J0))
    np.testing.assert_allclose(SATURATIONS["logistic"](s, J0, n, 0.3), 1 / (1 + np.exp(-logit)) - J0)


@pytest.mark.parametrize(
    ("form", "speed"), [("exponential", lambda J: 1 - J), ("logistic", lambda J: J * (1 - J))]
)
def test_saturation_solves_its_equation(form, speed):
    """dJ/dn = c s speed(J) / speed(J_0), by small Euler steps."""
    J, J0, s, c, h = 0.2, 0.2, 0.1, 0.3, 1e-3
    for _ in range(20_000):
        J += h * c * s * speed(J) / speed(J0)
    found = SATURATIONS[form](np.array([s]), np.array([J0]), np.array([20.0]), c)[0]
    assert pytest.approx(found, abs=1e-4) == J - J0


@pytest.mark.parametrize("form", SATURATIONS)
@pytest.mark.parametrize("c", [0.01, 0.2])
def test_a_planted_constant_is_found(form, c):
    noise = 0.004
    found = fit(long(_ladders(form, c, noise=noise), BUDGETS), form=form)
    assert (found.form, found.b, found.score) == (form, 1.0, "law")
    assert found.c == pytest.approx(c, rel=0.03)
    exact = fit(long(_ladders(form, c, noise=0.0), BUDGETS), form=form)
    assert exact.c == pytest.approx(c, rel=1e-6)


@pytest.mark.parametrize("form", POWERS)
@pytest.mark.parametrize("b", [0.5, 0.7, 1.0])
def test_a_planted_power_is_found_with_its_constant(form, b):
    found = fit(long(_ladders(POWERS[form], 0.3, b), BUDGETS), form=form)
    assert found.b == pytest.approx(b, abs=0.03)
    assert found.c == pytest.approx(0.3, rel=0.08)
    assert (skill(found, long(_ladders(POWERS[form], 0.3, b, seed=1), BUDGETS)).rmse < 0.006).all()
    within = fit(long(_ladders(POWERS[form], 0.3, 0.2), BUDGETS), form=form)
    assert within.b == pytest.approx(0.5)


def test_every_ladder_weighs_the_same():
    """One ladder with c = 0.1 and nine times the rungs, one with c = 0.3: the linear answer is in the middle."""
    few, many = _ladders("linear", 0.3, ladders=1, rungs=40), _ladders("linear", 0.1, ladders=1, rungs=40)
    many = pd.concat([many] * 9, ignore_index=True).assign(ladder="many")
    found = fit(long(pd.concat([few, many], ignore_index=True), BUDGETS), form="linear")
    assert found.c == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("form", ["exponential", "logistic, n^b"])
def test_neither_order_nor_the_unit_of_the_score_matters(form):
    frame = long(_ladders(), BUDGETS)
    found = fit(frame, form=form)
    shuffled = frame.sample(frac=1.0, random_state=0)
    assert fit(shuffled, form=form).c == pytest.approx(found.c, rel=1e-6)
    for unit in (1e-9, 1e9):
        scaled = frame.assign(law=unit * frame.law)
        again = fit(scaled, form=form)
        assert (again.c * unit, again.b) == pytest.approx((found.c, found.b), rel=1e-6)
        np.testing.assert_allclose(predict(again, scaled), predict(found, frame), rtol=1e-6)
    pd.testing.assert_series_equal(predict(found, shuffled).sort_index(), predict(found, frame))


def test_a_score_that_runs_against_the_gain_is_no_law():
    frame = long(_ladders(), BUDGETS)
    for form in (*SATURATIONS, *POWERS):
        found = fit(frame.assign(law=-frame.law), form=form)
        assert found == Law(form, 0.0)
        assert (predict(found, frame) == 0).all()
    assert fit(frame.assign(law=0.0), form="exponential").c == 0.0


@pytest.mark.parametrize("form", ["linear", "exponential", "exponential, n^b"])
def test_the_wrong_score_forecasts_worse_and_noise_worse_still(form):
    """Noise is not at 0 in a form that saturates: the room 1 - J_0 forecasts a little by itself."""
    frame = long(_ladders("exponential", 0.03), BUDGETS)
    frame["noise"] = np.random.default_rng(5).uniform(size=len(frame))
    right, wrong, noise = (
        skill(left_out(frame, form, s), frame, mean=True) for s in ("law", "hump", "noise")
    )
    assert (right.r2 > wrong.r2 + 0.05).all()
    assert (right.spearman > wrong.spearman).all()
    assert (right.r2 > noise.r2 + 0.4).all()


def test_the_right_saturation_is_told_from_the_others():
    for truth in BOUNDED:
        frame = long(_ladders(truth, 0.3, noise=0.002), BUDGETS)
        found = {form: skill(left_out(frame, form), frame).rmse.mean() for form in SATURATIONS}
        assert min(found, key=found.get) == truth
        assert found[truth] == pytest.approx(0.002, rel=0.1)


def test_left_out_never_sees_the_ladder_it_forecasts():
    frame = long(_ladders(ladders=3), BUDGETS)
    own = frame.ladder == "ladder 1"
    spoilt = frame.assign(gain=frame.gain.where(~own, 0.9))
    before, after = left_out(frame, "exponential"), left_out(spoilt, "exponential")
    assert before.index.equals(frame.index)
    np.testing.assert_allclose(after[own], before[own])
    assert (abs(after[~own] - before[~own]) > 1e-3).any()
    with pytest.raises(ValueError, match="at least 2 ladders"):
        left_out(frame[own], "exponential")


def test_skill_is_what_its_columns_say():
    frame = long(_ladders(ladders=2), BUDGETS)
    perfect = skill(frame.gain, frame)
    assert len(perfect) == 2 * len(BUDGETS)
    assert ((perfect.r2 == 1) & (perfect.rmse == 0) & (perfect.bias == 0) & (perfect.rungs == 40)).all()
    shifted = skill(frame.gain + 0.1, frame)
    assert shifted.bias.tolist() == pytest.approx([0.1] * 8)
    assert shifted.rmse.tolist() == pytest.approx([0.1] * 8)
    assert shifted.spearman.tolist() == pytest.approx([1.0] * 8)
    own_means = frame.groupby(["ladder", "n"]).gain.transform("mean")
    assert skill(own_means, frame).r2.tolist() == pytest.approx([0.0] * 8)
    averaged = skill(own_means, frame, mean=True)
    assert averaged.columns.tolist() == ["ladder", "r2", "spearman", "bias", "rmse", "rungs"]
    assert averaged.r2.tolist() == pytest.approx([0.0] * 2)
    planted = Law("exponential", 0.2)
    pd.testing.assert_frame_equal(skill(planted, frame), skill(predict(planted, frame), frame))
    with pytest.raises(ValueError, match="forecast: expected one number for each of"):
        skill(frame.gain[:-1], frame)


def test_long_has_a_row_for_every_gain_that_there_is():
    study = _ladders(ladders=2)
    study.loc[3, "gain_10"] = np.nan
    frame = long(study, (5, 10))
    assert len(frame) == 2 * len(study) - 1
    assert {"ladder", "step", "J0", "law", "n", "gain"} <= set(frame)
    assert not any(name.startswith(("gain_", "post_")) for name in frame)
    picked = frame[(frame.n == 10) & (frame.ladder == "ladder 1")]
    np.testing.assert_array_equal(picked.gain, study.gain_10[study.ladder == "ladder 1"])
    with pytest.raises(ValueError, match=r"budgets: .*\[7\]"):
        long(study, (5, 7))


def test_bad_input_is_named():
    frame = long(_ladders(ladders=2), BUDGETS)
    for change, said in [
        ({"J0": 1.5}, "J0: expected"),
        ({"law": np.nan}, "score: expected finite"),
        ({"gain": np.inf}, "gain: expected finite"),
    ]:
        with pytest.raises(ValueError, match=said):
            fit(frame.assign(**change), form="linear")
    for call, said in [
        (lambda: fit(frame, form="cubic"), "form: expected one of"),
        (lambda: fit(frame, form="linear", score="charm"), "score: expected one of"),
        (lambda: fit(frame[:0], form="linear"), "frame: expected at least one row"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


def test_a_score_is_a_rival_or_a_column():
    frame = long(_ladders(ladders=1), BUDGETS)
    np.testing.assert_array_equal(law.score_of(frame, "J_0 (1 - J_0)"), law.score_of(frame, "hump"))
