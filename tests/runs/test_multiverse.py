"""The specification curve: each correlation by another route, which readings coincide, shares of planted effects."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from replicate.impact.scores import averaged
from replicate.runs import multiverse
from replicate.runs.multiverse import CHOICES, LAW, PAPER, V_H, WITHOUT, Reading
from replicate.runs.study_tables import StudyTables, reading

RUNGS, LADDERS = 14, ("a", "b", "c")
GRID = multiverse.grid()


def _parts(rng, policy, advantage, layer, signal, room):
    """Components of one ladder: E lambda^ = c g, c of the rung under GRPO alone; the sampled costate scatters."""
    c = rng.uniform(1.0, 3.0, RUNGS) if advantage == "grpo" else np.ones(RUNGS)
    base = (
        signal * {"categorical": 1.0, "gumbel": rng.uniform(1, 2, RUNGS), "shift": 3.0}[policy] * (layer + 3)
    )
    # What no multiple of g is: a relaxation's bias, or a c that differs between prompts.
    off = rng.uniform(0.1, 0.4, RUNGS) if policy == "gumbel" or advantage == "grpo" else 0.0
    V = base * (1.0 if policy == "categorical" else 1.5)
    delta_mean, kappa_mean = ((c - 1) ** 2 + off) * base, c * base
    kappa = c * base * rng.uniform(0.7, 1.3, RUNGS)
    delta = delta_mean + rng.uniform(5, 50, RUNGS) * np.sqrt(base)
    columns = {"V": V, "delta": delta, "kappa": kappa, "empirical": delta - V + 2 * kappa, "headroom": room}
    means = {"V_mean": base, "delta_mean": delta_mean, "kappa_mean": kappa_mean}
    kinds = {f"headroom_{kind}": room**2 for kind in ("variance", "kl", "best_of_n")}
    where = {"policy": policy, "advantage": advantage, "layer": layer, "step": np.arange(RUNGS) * 10}
    return pd.DataFrame(where | columns | means | kinds)


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    parts = []
    for ladder in LADDERS:
        signal, room = rng.uniform(0.01, 1.0, (2, RUNGS))
        for policy, advantage, layer in itertools.product(
            *(CHOICES[k] for k in ("policy", "advantage", "layer"))
        ):
            part = _parts(rng, policy, advantage, layer, signal, room)
            parts.append(part.assign(ladder=ladder))
    whole = pd.concat(parts, ignore_index=True)
    # As published: rounded to float32, so that twins are equal but for round-off.
    whole = whole.astype(dict.fromkeys(whole.select_dtypes("float64"), "float32"))
    whole = whole.astype(dict.fromkeys(whole.select_dtypes("float32"), "float64"))
    none = pd.DataFrame()
    return StudyTables(none, whole, none, none, {})


@pytest.fixture(scope="module")
def target(tables):
    plain = reading(tables)
    gain = plain.V_mean * plain.headroom + np.random.default_rng(1).normal(scale=0.02, size=len(plain))
    return pd.Series(gain.to_numpy(), index=pd.MultiIndex.from_frame(plain[["ladder", "step"]]))


@pytest.fixture(scope="module")
def table(tables, target):
    return multiverse.correlations(tables, target, GRID)


@pytest.fixture(scope="module")
def coincide(tables, target):
    return multiverse.coincidences(multiverse.ranks(tables, target.index, GRID), GRID)


def test_the_grid_begins_with_the_reading_fixed_first_and_holds_the_marked_ones():
    assert len(GRID) == len(set(GRID)) == math.prod(map(len, CHOICES.values()))
    assert GRID[0] == PAPER
    assert {V_H, LAW} <= set(GRID)
    assert {of.layer for of in multiverse.grid([-1])} == {-1}


@pytest.mark.parametrize(
    "of",
    [
        PAPER,
        V_H,
        LAW,
        Reading("gumbel", "grpo", 8, "cosine", 2, "std"),
        Reading("shift", "reward", 128, "relative", -1, WITHOUT),
    ],
)
def test_a_correlation_is_that_of_the_score_written_out(tables, target, table, of):
    parts = reading(tables, policy=of.policy, advantage=of.advantage, layer=of.layer)
    V, delta, kappa, E = (averaged(parts, of.n)[name] for name in ("V", "delta", "kappa", "empirical"))
    score = {
        "difference": V - delta,
        "normalised": kappa / E**0.5,
        "relative": 1 - delta / V,
        "cosine": kappa / (V * E) ** 0.5,
    }[of.form]
    score = score * (parts.headroom if of.headroom == "std" else 1)
    for ladder in LADDERS:
        own = (parts.ladder == ladder).to_numpy()
        expected = stats.spearmanr(score[own], target.to_numpy()[own]).statistic
        assert table.loc[of, ladder] == pytest.approx(expected, abs=1e-12)


def test_signal_and_headroom_find_the_gain_made_of_them(table):
    assert (table.loc[V_H] > 0.95).all()
    assert (table.loc[PAPER] < 0.5).all()


def test_what_coincides_by_algebra_is_found(coincide):
    silent = [of for of, twin in coincide.items() if twin is None]
    # E lambda^ = g: the relative signal and the cosine are 1 everywhere, and order nothing.
    assert len(silent) == 16
    assert {of.form for of in silent} == {"relative", "cosine"}
    assert {(of.policy, of.n, of.headroom) for of in silent} == {
        ("categorical", math.inf, WITHOUT),
        ("shift", math.inf, WITHOUT),
    }
    # An unbiased advantage no longer matters once nothing is sampled ...
    reward = V_H._replace(advantage="reward")
    assert coincide[reward] == V_H
    # ... times 1, H alone is left, whatever the state ...
    alone = V_H._replace(form="relative")
    assert coincide[alone._replace(form="cosine")] == coincide[alone._replace(layer=2)] == alone
    # ... and a score and its square order alike, but not once both are multiplied by H.
    assert coincide[LAW._replace(form="scale-fitted")] == LAW
    assert LAW._replace(form="scale-fitted", headroom="std") not in coincide
    assert PAPER not in coincide


def test_twins_have_one_correlation_and_the_first_of_them_stays(table, coincide):
    for of, twin in coincide.items():
        if twin is None:
            assert (table.loc[of] == 0).all()
        else:
            assert twin not in coincide
            assert table.loc[of].to_numpy() == pytest.approx(table.loc[twin].to_numpy())
    said = multiverse.reasons(coincide)
    assert said.readings.sum() == len(coincide)
    assert set(said.iloc[:, 0]) >= {"orders nothing", "form", "advantage"}


def test_the_curve_is_sorted_and_holds_each_reading_that_is_one(table, coincide):
    curve = multiverse.curve(table, coincide)
    assert len(curve) == len(GRID) - len(coincide)
    assert curve["mean"].is_monotonic_increasing
    assert ((curve.low <= curve["mean"]) & (curve["mean"] <= curve.high)).all()
    row = curve[(curve[list(Reading._fields)] == list(V_H)).all(axis=1)].iloc[0]
    assert row["mean"] == pytest.approx(table.loc[V_H].mean())
    assert (row.positive, row.ladders) == (3, 3)


def test_ties_within_round_off_share_a_rank_and_others_do_not():
    values = np.array([1.0, 1.0 + 1e-7, 1.0 + 1e-4, -2.0, 0.0])
    assert multiverse._ranked(values).tolist() == [3.5, 3.5, 5.0, 1.0, 2.0]
    assert multiverse._ranked(np.array([0.0, -np.inf, -np.inf])).tolist() == [3.0, 1.5, 1.5]


def test_a_rung_that_was_not_measured_is_named(tables, target):
    with pytest.raises(ValueError, match="target: expected rungs that were measured"):
        multiverse.correlations(tables, target.rename(index={10: 11}, level="step"), [PAPER])


def test_shares_of_planted_effects():
    """Two factors that add up, and on the other ladder the product of two: no main effect, all of it interaction."""
    levels = pd.MultiIndex.from_product([(0, 1), (0, 1), (0, 1)], names=list("xyz"))
    x, y, _ = (2 * levels.get_level_values(name).to_numpy() - 1 for name in "xyz")
    table = pd.DataFrame({"sum": 2.0 * x + 1.0 * y, "product": 1.0 * x * y}, index=levels)
    found = multiverse.shares(table.sample(frac=1, random_state=0)).set_index(["ladder", "factor"])
    assert found.alone["sum"].to_dict() == pytest.approx({"x": 0.8, "y": 0.2, "z": 0.0}, abs=1e-12)
    assert found.total["sum"].to_dict() == pytest.approx({"x": 0.8, "y": 0.2, "z": 0.0}, abs=1e-12)
    assert found.alone["product"].abs().max() < 1e-12
    assert found.total["product"].to_dict() == pytest.approx({"x": 1.0, "y": 1.0, "z": 0.0}, abs=1e-12)


def test_shares_need_the_whole_grid(table):
    shares = multiverse.shares(table)
    assert shares.groupby("ladder").alone.sum().max() < 1
    assert (shares.total >= shares.alone - 1e-12).all()
    with pytest.raises(ValueError, match="expected the full grid of 720 readings, got 719"):
        multiverse.shares(table.iloc[1:])


def test_headrooms_of_both_readings(tables, target, table):
    rows = multiverse.by_headroom(tables, target)
    assert len(rows) == 10
    std = rows[rows.headroom == "std"].set_index("n")["mean"]
    assert std[1] == pytest.approx(table.loc[PAPER].mean())
    assert std[math.inf] == pytest.approx(table.loc[V_H].mean())
