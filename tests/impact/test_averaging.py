"""Scores of averaged costates: the formula against simulation, orders against planted ones, turning points."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from replicate.impact.averaging import averaged_score, counts, rank_by_average, surrogate_gap, turning_points
from replicate.impact.measured import components
from replicate.impact.scores import averaged
from replicate.models.fresh import tiny_olmo2
from replicate.models.precision import full_precision

VOCAB, GROUP = 9, 4


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


def test_counts_are_even_in_the_logarithm():
    numbers = counts(1024, each=4)
    assert (numbers[0], numbers[-1], len(numbers)) == (1, pytest.approx(1024), 41)
    assert np.diff(np.log2(numbers)).tolist() == pytest.approx([0.25] * 40)


def parts(rungs=6, ladder="a", noise=1.0):
    """A ladder whose V grows from rung to rung while the variance of a costate grows faster."""
    k = np.arange(1.0, rungs + 1)
    return pd.DataFrame(
        {
            "ladder": ladder,
            "step": np.arange(rungs),
            "V": k,
            "delta": noise * 10 * k**2,
            "kappa": k,
            "empirical": noise * 10 * k**2 + k,
            "V_mean": k,
            "delta_mean": 0.0,
            "kappa_mean": k,
            "headroom": 0.5,
        }
    )


def response(table, gain):
    return table[["ladder", "step"]].assign(gain=gain)


def test_the_score_of_the_mean_is_the_signal_times_the_headroom():
    table = parts()
    k = table.V
    assert averaged_score(table, 5).tolist() == pytest.approx((0.5 * (k - 2 * k**2)).tolist())
    assert averaged_score(table, math.inf).tolist() == pytest.approx((0.5 * k).tolist())
    fitted = averaged_score(table, 2, form="scale-fitted")
    assert fitted.tolist() == pytest.approx((0.5 * k**2 / (5 * k**2 + k)).tolist())


def test_averaging_turns_the_order_round():
    """V - Delta / n = k - 10 k^2 / n falls in k for n = 1, rises up to k = n / 20."""
    table = pd.concat([parts(), parts(ladder="b", noise=0.1)], ignore_index=True)
    ranks = rank_by_average(table, response(table, table.V), [1, 10, 1000])
    wide = ranks.pivot(index="ladder", columns="n", values="spearman")
    assert wide.loc["a"].tolist() == pytest.approx([-1, -1, 1])
    assert wide.loc["b", 1] == pytest.approx(-1)
    assert wide.loc["b", 10] < 1
    assert wide.loc["b", 1000] == pytest.approx(1)


def test_rungs_are_matched_by_name_and_not_by_place():
    table = parts()
    shuffled = response(table, table.V).iloc[::-1].reset_index(drop=True)
    assert rank_by_average(table, shuffled, [math.inf]).spearman.tolist() == pytest.approx([1.0])


def test_a_constant_score_orders_nothing():
    table = parts().assign(V=1.0, delta=1.0, V_mean=1.0, delta_mean=1.0)
    assert rank_by_average(table, response(table, np.arange(6.0)), [1]).spearman.tolist() == [0.0]


def test_what_does_not_fit_is_refused():
    table = parts()
    with pytest.raises(ValueError, match="the same rungs, got 6 and 5 rows, 5 in common"):
        rank_by_average(table, response(table, table.V).head(5), [1])
    with pytest.raises(ValueError, match="finite numbers"):
        rank_by_average(table.assign(delta=math.nan), response(table, table.V), [1])
    with pytest.raises(ValueError, match="n: expected"):
        rank_by_average(table, response(table, table.V), [0.5])


def test_where_the_sign_turns():
    rows = {
        "early": [0.1, 0.2, 0.3, 0.4],
        "half": [-0.5, -0.5, 0.5, 0.9],  # from 10 to 100, half-way in the logarithm
        "back": [0.5, -0.1, -0.1, 0.3],  # above 0 at first, which does not count: 100 (1000 / 100)^(1/4)
        "never": [-0.5, 0.2, 0.1, 0.0],
    }
    table = pd.DataFrame(
        [(name, n, v) for name, vs in rows.items() for n, v in zip((1, 10, 100, 1000), vs, strict=True)],
        columns=["ladder", "n", "spearman"],
    ).sample(frac=1, random_state=0)
    found = turning_points(table)
    assert found.round(6).to_dict() == pytest.approx(
        {"early": 1.0, "half": round(10**1.5, 6), "back": round(10**2.25, 6), "never": math.inf}
    )


@pytest.fixture(scope="module")
def model():
    made = tiny_olmo2(
        layers=1, hidden=8, heads=2, context=16, vocab=VOCAB, generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        made.lm_head.weight.mul_(20)  # far from uniform
    return made.eval()


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(VOCAB, (6, 5), generator=torch.Generator().manual_seed(1)), torch.tensor(
        [1, 4, 7, 0, 2, 3]
    )


def simulated(model, prompts, n, **options):
    options = {"group_size": GROUP, "vocab": VOCAB, "generator": torch.Generator().manual_seed(2), **options}
    return surrogate_gap(model, *prompts, n, **options)


@pytest.mark.parametrize("advantage", ["leave_one_out", "grpo"])
def test_the_formula_and_the_surrogate_agree(model, prompts, advantage):
    """Delta_n from matched samples of one costate and closed-form means, against autograd through n sampled tokens."""
    runs = [
        components(
            model, *prompts, group_size=GROUP, vocab=VOCAB, advantage=advantage,
            generator=torch.Generator().manual_seed(seed),
        ).row()
        for seed in range(50)
    ]  # fmt: skip
    rows = pd.DataFrame(runs)
    for n in (1, 5):
        formula, drawn = (
            averaged(rows, n).delta,
            simulated(model, prompts, n, advantage=advantage, replicates=400),
        )
        error = (formula.sem() ** 2 + (drawn.std() ** 2 / len(drawn)).item()) ** 0.5
        assert abs(formula.mean() - drawn.mean().item()) / error < 4.5


def test_the_surrogate_refuses_nothing_to_average(model, prompts):
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        simulated(model, prompts, 0)
    with pytest.raises(ValueError, match="replicates: expected at least 1, got 0"):
        simulated(model, prompts, 1, replicates=0)


def test_replicates_are_independent_of_each_other(model, prompts):
    """Their variance is that of the mean, which falls as 1 / replicates only for independent ones."""
    drawn = simulated(model, prompts, 2, replicates=2000)
    assert len(drawn) == 2000
    halves = drawn.view(1000, 2).mean(1)
    assert (halves.var() / drawn.var()).item() == pytest.approx(0.5, abs=0.1)
