"""Fractional designs: confounding as printed in tables of designs; effects as contrasts of means; intervals that cover,
and one that does not where its model is wrong."""

import numpy as np
import pandas as pd
import pytest

from replicate.statistics import factorial
from replicate.statistics.over_ladders import over_ladders

# The 2^(9-4) design of resolution IV with least aberration, as tables of designs have it.
NINE = factorial.fraction("abcde", {"f": "bcde", "g": "acde", "h": "abde", "i": "abce"})
HALF = factorial.fraction("abc", {"d": "abc"})
LEVELS = dict.fromkeys(HALF, (-1, 1))


def simulated(rng, *, effect=0.5, slopes=0.0, noise=0.3, ladders=4, rungs=3, design=HALF):
    """Responses with the effect of ``a``, which differs between ladders by ``slopes``, on random ladders and rungs."""
    rows = []
    for ladder in range(ladders):
        level, own = rng.normal(), effect + slopes * rng.normal()
        for step in range(rungs):
            y = level + rng.normal() + own * design["a"] / 2 + noise * rng.normal(size=len(design))
            rows.append(design.assign(ladder=f"s{ladder}", step=step, cell=range(len(design)), y=y))
    return pd.concat(rows, ignore_index=True)


# The design


def test_the_nine_factors_are_a_fraction_of_resolution_four_with_the_published_words():
    """16 words with the empty one; by length 6 of 4, 8 of 5 and 1 of 8: the pattern printed for this design."""
    words = factorial.words(NINE)
    assert (NINE**2 == 1).all(axis=None)
    assert np.array_equal(NINE.T @ NINE, 32 * np.eye(9))
    assert factorial.resolution(NINE) == 4
    assert [sum(len(w) == n for w in words) for n in range(1, 10)] == [0, 0, 0, 6, 8, 0, 0, 1, 0]
    assert set(words.values()) == {1}
    assert len(NINE.drop_duplicates()) == 32


def test_confounded_terms_have_equal_columns_and_no_others_have():
    aliases = factorial.aliases(NINE)
    for term, others in aliases.items():
        column = NINE[list(term)].prod(axis=1)
        equal = [t for t in aliases if t != term and abs(column @ NINE[list(t)].prod(axis=1)) == 32]
        assert others == equal
    assert all(aliases[(name,)] == [] for name in NINE)
    assert aliases["a", "f"] == [("b", "g"), ("c", "h"), ("d", "i")]
    assert aliases["a", "e"] == []


def test_generators_are_found_again_with_their_signs_in_any_order_of_runs():
    turned = NINE.assign(f=-NINE.f).sample(frac=1, random_state=0)
    found = factorial.generators_of(turned)
    assert found == {
        "f": (-1, tuple("bcde")),
        "g": (1, tuple("acde")),
        "h": (1, tuple("abde")),
        "i": (1, tuple("abce")),
    }


def test_a_full_factorial_confounds_nothing_and_a_poor_fraction_is_told():
    full = factorial.fraction("abc", {})
    assert (factorial.words(full), factorial.resolution(full)) == ({}, np.inf)
    assert factorial.generators_of(full) == {}
    poor = factorial.fraction("abc", {"d": "ab"})
    assert factorial.resolution(poor) == 3
    assert factorial.aliases(poor)[("d",)] == [("a", "b")]


def test_levels_are_coded_and_others_refused():
    table = pd.DataFrame({"rate": [0.25, 4.0, 0.25], "scale": ["none", "std", "std"]})
    found = factorial.coded(table, {"rate": (0.25, 4.0), "scale": ("none", "std")})
    assert found.to_numpy().tolist() == [[-1, -1], [1, 1], [-1, 1]]
    with pytest.raises(ValueError, match=r"^rate: expected 0.25 or 1, got \[4.0\]$"):
        factorial.coded(table, {"rate": (0.25, 1)})
    with pytest.raises(ValueError, match="generators: expected products of"):
        factorial.fraction("ab", {"c": "ad"})


# Effects


def test_effects_of_a_balanced_design_are_contrasts_of_means():
    """Both readings, factors and products; to round-off, and to the optimiser's tolerance."""
    frame = simulated(np.random.default_rng(0))
    product = frame.a * frame.b
    expected = {name: frame.y[frame[name] > 0].mean() - frame.y[frame[name] < 0].mean() for name in HALF}
    expected["a:b"] = frame.y[product > 0].mean() - frame.y[product < 0].mean()
    by = factorial.ladder_effects(frame, LEVELS, "y", terms=[("a", "b")])
    assert by.mean().to_dict() == pytest.approx(expected, abs=1e-12)
    mixed = factorial.mixed_effects(frame, LEVELS, "y", terms=[("a", "b")]).set_index("term")
    assert mixed["mean"].to_dict() == pytest.approx(expected, abs=1e-6)
    one = frame[frame.ladder == "s2"]
    assert by.loc["s2", "c"] == pytest.approx(one.y[one.c > 0].mean() - one.y[one.c < 0].mean())


def test_the_mixed_models_interval_is_that_of_the_analysis_of_variance():
    """In a balanced design the effect's variance is 4 s^2 / N, s^2 the mean square that rungs and factors leave."""
    frame = simulated(np.random.default_rng(1))
    left = frame.y - frame.groupby(["ladder", "step"]).y.transform("mean")
    squares = left @ left
    for name in HALF:
        effect = frame.y[frame[name] > 0].mean() - frame.y[frame[name] < 0].mean()
        squares -= len(frame) * effect**2 / 4
    error = np.sqrt(4 * squares / (len(frame) - 12 - 4) / len(frame))
    found = factorial.mixed_effects(frame, LEVELS, "y")
    assert (found.high - found["mean"]).to_numpy() == pytest.approx(1.959964 * error, rel=1e-3)


def test_units_of_the_response_move_nothing_else():
    frame = simulated(np.random.default_rng(2))
    for of in (factorial.mixed_effects, factorial.over_ladders_effects):
        small, large = (of(frame.assign(y=unit * frame.y), LEVELS, "y") for unit in (1e-3, 1e3))
        assert small.p.to_numpy() == pytest.approx(large.p.to_numpy(), rel=1e-4)
        assert (1e6 * small.low).to_numpy() == pytest.approx(large.low.to_numpy(), rel=1e-4)


def test_a_planted_effect_is_found_and_nothing_else_is():
    """Nine factors in 32 runs, four ladders: Holm leaves the planted one in both readings, the runs in any order."""
    frame = simulated(np.random.default_rng(3), design=NINE).sample(frac=1, random_state=0)
    found = factorial.effects(frame, dict.fromkeys(NINE, (-1, 1)), "y")
    decided = found[found.holm < 0.05]
    assert decided.groupby("reading").term.agg(list).to_dict() == {
        factorial.MIXED: ["a"],
        factorial.OVER: ["a"],
    }
    assert decided["mean"].tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_runs_that_are_missing_bias_no_effect():
    """Without noise the effects come out exactly, with a tenth of the runs gone; the contrast of means does not."""
    frame = simulated(np.random.default_rng(4), noise=0.0)
    holed = frame.sample(frac=0.9, random_state=1)
    assert factorial.ladder_effects(holed, LEVELS, "y").a.to_numpy() == pytest.approx(0.5, abs=1e-10)
    assert abs(holed.y[holed.a > 0].mean() - holed.y[holed.a < 0].mean() - 0.5) > 0.01


def test_the_mixed_model_is_the_one_that_a_formula_states():
    """Unbalanced, so that the random levels matter: ladders, and rungs within them, against statsmodels' formula."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    frame = simulated(np.random.default_rng(5)).sample(frac=0.7, random_state=2)
    random = {"groups": "ladder", "re_formula": "1", "vc_formula": {"rung": "0 + C(step)"}}
    fit = MixedLM.from_formula("y ~ a + b + c + d", frame, **random).fit()
    found = factorial.mixed_effects(frame, LEVELS, "y").set_index("term")
    assert found["mean"].to_dict() == pytest.approx((2 * fit.fe_params[list(HALF)]).to_dict(), abs=1e-4)
    ends = 2 * fit.conf_int().loc[list(HALF)]
    assert found.low.to_numpy() == pytest.approx(ends[0].to_numpy(), abs=1e-3)


def test_a_response_with_one_number_a_cell_and_ladder_needs_no_rungs():
    frame = simulated(np.random.default_rng(6)).groupby(["ladder", "cell"], as_index=False).mean()
    found = factorial.effects(frame, LEVELS, "y", rung=None)
    expected = frame.y[frame.a > 0].mean() - frame.y[frame.a < 0].mean()
    assert found[found.term == "a"]["mean"].tolist() == pytest.approx([expected, expected], abs=1e-6)


@pytest.mark.parametrize("slopes", [0.0, 0.5])
def test_intervals_over_ladders_cover_whether_or_not_ladders_differ(slopes):
    rng, draws, inside = np.random.default_rng(7), 150, 0
    for _ in range(draws):
        found = over_ladders(factorial.ladder_effects(simulated(rng, slopes=slopes), LEVELS, "y")["a"])
        inside += found.low <= 0.5 <= found.high
    assert abs(inside / draws - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / draws)


def test_the_mixed_models_interval_is_too_narrow_where_ladders_differ():
    """Its 95% hold where one effect serves all ladders (5 of 6 or more), and not where each has its own."""
    inside = {}
    for slopes in (0.0, 2.0):
        rng = np.random.default_rng(9)
        rows = [factorial.mixed_effects(simulated(rng, slopes=slopes), LEVELS, "y").loc[0] for _ in range(6)]
        inside[slopes] = sum(row.low <= 0.5 <= row.high for row in rows)
    assert inside[0.0] >= 5
    assert inside[2.0] <= 3


def test_ladders_that_do_not_differ_leave_effects_and_intervals_as_they_are():
    """The ladder's variance is then 0, at the edge of what it may be: least squares is the answer."""
    frame = simulated(np.random.default_rng(10), ladders=4, rungs=1)
    frame["y"] -= frame.groupby("ladder").y.transform("mean")
    found = factorial.mixed_effects(frame, LEVELS, "y", rung=None)
    assert found["mean"].loc[0] == pytest.approx(frame.y[frame.a > 0].mean() - frame.y[frame.a < 0].mean())
    left = frame.y - frame[list(HALF)] @ found["mean"].to_numpy() / 2
    error = np.sqrt(4 * (left @ left) / (len(frame) - 5) / len(frame))
    assert (found.high - found["mean"]).to_numpy() == pytest.approx(1.959964 * error, rel=0.02)


def test_what_cannot_be_told_apart_or_read_is_refused():
    frame = simulated(np.random.default_rng(8))
    with pytest.raises(ValueError, match=r"expected runs that tell .* apart, got some confounded on s0"):
        factorial.ladder_effects(frame, LEVELS, "y", terms=[("a", "b"), ("c", "d")])
    with pytest.raises(ValueError, match="y: expected finite numbers"):
        factorial.ladder_effects(frame.assign(y=np.nan), LEVELS, "y")
    with pytest.raises(ValueError, match=r"expected columns .* got none called"):
        factorial.mixed_effects(frame.drop(columns="c"), LEVELS, "y")
