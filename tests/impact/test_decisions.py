"""Decisions on ladders made by hand, whose best rung is known."""

import math

import numpy as np
import pandas as pd
import pytest

from replicate.impact.decisions import (
    Costs,
    affordable,
    curve_of,
    fixed_budget,
    forecast_by,
    outcome_at,
    policies,
    policies_to,
    reward_at,
    tokens_to,
    update_tokens,
    updates_to,
)
from replicate.impact.law import Law
from replicate.impact.scores import PILOT

COSTS = Costs(update=10, measure=0)
SCORES = {"good": lambda frame: frame["good"], "bad": lambda frame: frame["bad"]}


def _frame(**changes):
    """Four rungs, 100 tokens apart. Rung 1 is the one on which RL works."""
    columns = {
        "ladder": "by hand",
        "step": [0, 25, 50, 75],
        "tokens": [0, 100, 200, 300],
        "J0_held_out": [0.0, 0.2, 0.4, 0.6],
        "post_5": [0.0, 0.5, 0.45, 0.6],
        "post_10": [0.0, 0.8, 0.5, 0.6],
        "post_20": [0.0, 0.95, 0.6, 0.6],
        "J0": [0.0, 0.2, 0.4, 0.6],
        "good": [0.0, 3.0, 1.0, 0.0],
        "bad": [3.0, 0.0, 1.0, 2.0],
        "pilot": [0.0, 0.3, 0.05, 0.0],
    }
    frame = pd.DataFrame(columns | changes)
    for n in (5, 10, 20):
        frame[f"gain_{n}"] = frame[f"post_{n}"] - frame["J0_held_out"]
    return frame


def _by_policy(*args, **options):
    return policies(*args, **options).set_index("policy")


def test_a_curve_is_linear_in_the_logarithm_of_updates():
    curve = {0: 0.1, 5: 0.3, 20: 0.9}
    assert reward_at(curve, 0) == (0.1, False)
    assert reward_at(curve, 5).reward == pytest.approx(0.3)
    assert reward_at(curve, 20) == (pytest.approx(0.9), False)
    middle = math.sqrt(6 * 21) - 1
    assert reward_at(curve, middle).reward == pytest.approx(0.6)
    assert reward_at(curve, 21) == (0.9, True)
    assert reward_at(dict(reversed(curve.items())), 5).reward == pytest.approx(0.3)
    for bad in ({5: 0.1}, {}, {0: math.nan}):
        with pytest.raises(ValueError, match="curve: expected"):
            reward_at(bad, 1)
    with pytest.raises(ValueError, match="updates: expected"):
        reward_at(curve, -1)


def test_updates_to_a_target():
    curve = {0: 0.1, 5: 0.3, 20: 0.9, 40: 0.95}
    assert updates_to(curve, 0.05) == 0.0
    assert updates_to(curve, 0.6) == pytest.approx(math.sqrt(6 * 21) - 1)
    assert reward_at(curve, updates_to(curve, 0.77)).reward == pytest.approx(0.77)
    assert updates_to(curve) == pytest.approx(20.0)
    assert updates_to(curve, 0.96) == math.inf
    assert updates_to({0: 0.0, 5: 0.95, 10: 0.2, 20: 1.0}) < 5  # the first time counts


def test_curves_of_a_frame_leave_out_what_was_not_run():
    frame = _frame()
    assert curve_of(frame.iloc[1]) == {0: 0.2, 5: 0.5, 10: 0.8, 20: 0.95}
    frame.loc[1, "post_10"] = np.nan
    assert curve_of(frame.assign(post=0.0).iloc[1]) == {0: 0.2, 5: 0.5, 20: 0.95}


def test_tokens_of_an_update():
    full = update_tokens(prompts=16, group_size=8, length=19)
    assert full == 16 * 8 * 20
    assert update_tokens(prompts=16, group_size=8, length=19, shared=True) == 16 * (19 + 8)
    assert update_tokens(prompts=2, group_size=3, length=4, answer=5) == 2 * 3 * 9
    for bad in ({"update": 0}, {"measure": -1}, {"pilot_updates": -1}):
        with pytest.raises(ValueError, match="costs: expected"):
            Costs(**({"update": 1, "measure": 1} | bad))


def test_outcomes_at_equal_tokens():
    found = outcome_at(_frame().sample(frac=1, random_state=0), 255, COSTS)
    assert found["step"].tolist() == [0, 25, 50]
    assert found["updates"].tolist() == [25, 15, 5]
    assert found["capped"].tolist() == [True, False, False]
    between = 0.8 + 0.15 * math.log(16 / 11) / math.log(21 / 11)
    assert found["outcome"].tolist() == pytest.approx([0.0, between, 0.45])
    charged = outcome_at(_frame(), 255, COSTS, spent=60, done=2)
    assert charged["updates"].tolist() == [21, 11]
    with pytest.raises(ValueError, match="total_tokens: expected"):
        outcome_at(_frame(), 50, COSTS, spent=51)
    with pytest.raises(ValueError, match="frame: expected the rungs of one ladder"):
        outcome_at(_frame(ladder=["a", "a", "b", "b"]), 255, COSTS)


def test_the_planted_rung_wins_and_the_regrets_add_up():
    found = _by_policy(_frame(), 300, COSTS, scores=SCORES)
    assert found.loc["best rung", ["step", "updates", "reward", "regret"]].tolist() == [25, 20, 0.95, 0]
    assert found.loc["good", ["step", "reward", "regret"]].tolist() == [25, 0.95, 0]
    assert found.loc["bad", ["step", "reward", "regret", "capped"]].tolist() == [0, 0.0, 0.95, True]
    assert found.loc["last rung", ["step", "updates", "reward"]].tolist() == [50, 10, 0.5]
    assert found.loc["just pretrain on", ["step", "updates", "reward"]].tolist() == [75, 0, 0.6]
    assert found.loc["chance", "reward"] == pytest.approx((0 + 0.95 + 0.5 + 0.6) / 4)
    assert found.loc["chance", "updates"] == pytest.approx((30 + 20 + 10 + 0) / 4)
    np.testing.assert_allclose(found["reward"] + found["regret"], 0.95)


def test_ties_go_to_the_earlier_rung_and_a_missing_score_to_none():
    found = _by_policy(_frame(), 300, COSTS, scores={"level": lambda frame: 0 * frame["good"]})
    assert found.loc["level", "step"] == 0
    with pytest.raises(ValueError, match="scores: expected"):
        policies(_frame(good=[np.nan, 1, 2, 3]), 300, COSTS, scores=SCORES)


def test_measuring_is_charged_for_every_rung_looked_at():
    """Looking at 3 rungs for 20 tokens each leaves rung 1 14 updates instead of 20."""
    found = _by_policy(_frame(), 300, Costs(10, 20), scores=SCORES)
    assert found.loc["good", ["looks", "spent", "updates"]].tolist() == [3, 60, 14]
    assert found.loc["good", "regret"] > 0
    assert found.loc["best rung", "reward"] == 0.95
    free = ["best rung", "last rung", "just pretrain on", "chance"]
    assert (found.loc[free, ["looks", "spent"]] == 0).all(axis=None)


def test_charging_changes_the_choice():
    """The best score is on the last rung; who pays for looking gets no further than the one before it."""
    frame = _frame(good=[0.0, 1.0, 2.0, 3.0])
    assert _by_policy(frame, 330, COSTS, scores=SCORES).loc["good", "step"] == 75
    assert _by_policy(frame, 330, Costs(10, 10), scores=SCORES).loc["good", "step"] == 50
    assert affordable(frame, 330, 0)["step"].tolist() == [0, 25, 50, 75]
    assert affordable(frame, 330, 10)["step"].tolist() == [0, 25, 50]
    assert affordable(frame, 340, 10)["step"].tolist() == [0, 25, 50, 75]
    assert affordable(frame, 330, 331).empty
    poor = _by_policy(frame, 330, Costs(10, 331), scores=SCORES)
    assert poor.loc[["good", "bad"], ["step", "reward", "regret"]].isna().all(axis=None)


def test_a_pilot_pays_its_updates_everywhere_and_keeps_those_of_its_choice():
    """At 300 tokens: 3 rungs at 50 tokens would need 200 + 150, so it looks at 2, and 100 of 300 tokens are gone."""
    found = _by_policy(_frame(), 300, COSTS, scores={PILOT: lambda frame: frame["pilot"]})
    assert found.loc[PILOT, ["step", "looks", "spent", "updates"]].tolist() == [25, 2, 100, 15]
    dear = _by_policy(_frame(), 300, Costs(10, 5), scores={PILOT: lambda frame: frame["pilot"]})
    assert dear.loc[PILOT, ["looks", "spent", "updates"]].tolist() == [2, 110, 14]


def test_pretraining_on_wins_where_it_is_faster_than_rl():
    frame = _frame(J0_held_out=[0.0, 0.2, 0.4, 0.97], post_5=0.97, post_10=0.97, post_20=0.97)
    for n in (5, 10, 20):
        frame[f"post_{n}"] = [0.0, 0.3, 0.5, 0.96]
    found = _by_policy(frame, 300, COSTS, scores=SCORES)
    assert found.loc["just pretrain on", "regret"] == 0
    assert found.loc["good", "regret"] > 0.6


def test_last_rung_needs_room_for_a_pilot():
    found = _by_policy(_frame(), 49, COSTS, scores={})
    assert math.isnan(found.loc["last rung", "reward"])
    assert _by_policy(_frame(), 50, COSTS, scores={}).loc["last rung", ["step", "updates"]].tolist() == [0, 5]


def test_a_forecast_knows_where_a_rung_starts_and_how_many_updates_are_left():
    """The score alone takes rung 1 at any budget; a forecast takes the later rung where there is no time."""
    frame = _frame(law=[0.0, 0.05, 0.02, 0.0])
    forecasts = {"forecast": forecast_by(Law("linear", 1.0))}
    short = _by_policy(frame, 320, COSTS, scores={}, forecasts=forecasts)
    assert short.loc["forecast", "step"] == 25  # 0.2 + 20 x 0.05 against 0.4 + 12 x 0.02 and 0.6
    late = frame.assign(tokens=[0, 300, 310, 320])
    assert _by_policy(late, 320, COSTS, scores={}, forecasts=forecasts).loc["forecast", "step"] == 75
    seen = {}

    def spy(rungs, updates):
        seen["updates"] = list(updates)
        return rungs["J0"]

    policies(frame, 10_000, COSTS, scores={}, forecasts={"spy": spy})
    assert seen["updates"] == [20, 20, 20, 20]  # no more than were run


def test_tokens_to_a_target():
    found = tokens_to(_frame(post_20=[0.0, 0.9, 0.6, 0.6]), COSTS)
    assert found["updates"].tolist() == [math.inf, 20, math.inf, math.inf]
    assert found["total"].tolist() == [math.inf, 300, math.inf, math.inf]
    easy = tokens_to(_frame(), COSTS, 0.45)
    assert easy["updates"].tolist() == [math.inf, 4, 5, 0]  # 3.46 updates are four
    assert easy["total"].tolist() == [math.inf, 140, 250, 300]


def test_policies_on_the_way_to_a_target():
    scores = SCORES | {PILOT: lambda frame: frame["pilot"]}
    found = policies_to(_frame(), Costs(10, 1), scores, 0.45).set_index("policy")
    assert found["total"].to_dict() == {
        "best rung": 140,
        "last rung": 300,
        "just pretrain on": 300,
        "good": 144,
        "bad": math.inf,
        PILOT: 100 + 4 * 51,
    }
    assert found.loc["good", ["step", "updates"]].tolist() == [25, 4]
    assert found.loc["good", "excess"] == pytest.approx(144 / 140 - 1)
    hopeless = policies_to(_frame(), COSTS, SCORES, 0.99).set_index("policy")
    assert np.isinf(hopeless["total"]).all()
    assert hopeless["excess"].isna().all()


def test_a_fixed_budget_charges_nothing():
    found = fixed_budget(_frame(), 10, SCORES).set_index("policy")
    assert found.loc["good", ["step", "gain_regret"]].tolist() == [25, 0]
    assert found.loc["good", "post_regret"] == 0
    assert found.loc["bad", ["gain_regret", "post_regret"]].tolist() == [1, 1]
    assert found.loc["last rung", ["gain_regret", "post_regret"]].tolist() == pytest.approx([1, 0.25])
    assert found.loc["chance", "gain_regret"] == pytest.approx(1 - (0.6 + 0.1) / 4 / 0.6)
    assert found.loc["chance", "post_regret"] == pytest.approx(1 - (0.8 + 0.5 + 0.6) / 4 / 0.8)
    no_gain = _frame().assign(gain_10=0.0)
    assert fixed_budget(no_gain, 10, SCORES)["gain_regret"].isna().all()
    with pytest.raises(ValueError, match="n: expected"):
        fixed_budget(_frame(), 11, SCORES)
