"""The two sentences on critics say what the verdicts say, whatever they are."""

import numpy as np
import pytest

from replicate.report import critic_free
from replicate.report.verdicts import Verdicts
from replicate.statistics.over_ladders import over_ladders

AROUND = np.array([-0.1, 0.1, 0.0, 0.02])
ABOVE, BELOW = 0.1 + 0.01 * AROUND, -0.1 + 0.01 * AROUND
ROW = {"kind": "ours", "where": "A9", "source": "x"}


def judged(early, late, dense):
    table = Verdicts("15_x", "x")
    for claim, values in ((critic_free.EARLY, early), (critic_free.DENSE, dense)):
        found = {"T = 2": over_ladders(values), "T = 1": over_ladders(BELOW)}
        critic_free.not_above(table, claim, found, margin=0.02, quantity="PPO less the better", **ROW)
    table.decide(critic_free.LATE, over_ladders(late), quantity="PPO less the better", **ROW)
    return table


@pytest.mark.parametrize(
    ("values", "verdict", "number"),
    [
        (ABOVE, "not reproduced", "T = 2"),
        (BELOW, "reproduced", "T = "),
        (AROUND, "not testable here", "T = 2"),
    ],
)
def test_not_above_is_met_only_by_intervals_that_end_below_the_margin(values, verdict, number):
    row = judged(values, ABOVE, BELOW).rows[0]
    assert row.verdict == verdict
    assert f"worst at {number}" in row.quantity


def test_a_gain_that_is_sure_and_small_is_a_gain():
    """Above 0 in every interval, and below the margin: the claim was that there is none."""
    assert judged(0.01 + 1e-3 * AROUND, ABOVE, BELOW).rows[0].verdict == "not reproduced"


def test_the_words_follow_the_verdicts():
    enough, late = critic_free.sentences(judged(BELOW, ABOVE, BELOW))
    assert enough == (
        "RL without a critic is enough for answers of one or two tokens and wherever each right token is paid and a "
        "token is credited with what is still to come."
    )
    assert late.startswith("With one reward at the end of 16 tokens it is not")
    assert late.endswith("+0.10 [+0.10, +0.10] of reward.")
    enough, late = critic_free.sentences(judged(ABOVE, BELOW, AROUND))
    assert enough.startswith(
        "A learned critic gains more for answers of one or two tokens; four ladders do not"
    )
    assert late.startswith("Nor does a learned critic help")
    enough, late = critic_free.sentences(judged(AROUND, AROUND, AROUND))
    assert enough.startswith("Four ladders do not decide whether")
    assert " tokens or wherever " in enough
    assert late.startswith("With one reward at the end of 16 tokens four ladders do not tell")
    assert late.endswith("+0.01 [-0.13, +0.14] of reward.")


def test_where_nobody_gains_no_difference_is_spoken_of():
    table = judged(BELOW, AROUND, BELOW)
    table.untestable(critic_free.FAILS, because="nothing is gained", **ROW)
    assert "nothing is gained here with or without a critic" in critic_free.sentences(table)[1]


def test_a_claim_without_a_row_is_named():
    with pytest.raises(ValueError, match="rows: expected one on 'With one reward"):
        critic_free.sentences(judged(BELOW, ABOVE, BELOW).rows[:2])
