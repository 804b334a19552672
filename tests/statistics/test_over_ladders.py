"""Statistics over ladders on simulated ladders: intervals that cover, tests that keep their size, known R^2."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from replicate.statistics.over_ladders import (
    Line,
    by_ladder,
    concordance,
    holm,
    left_out_ladder,
    over_ladders,
    paired,
    pairs,
    predict_ladders,
)
from replicate.statistics.splines import quantile_knots, spline_basis


def _shuffled(frame, seed=0):
    return frame.sample(frac=1, random_state=seed)


def _within(share, expected, draws):
    """Whether an observed share is within 4 standard errors of the expected one."""
    return abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws)


# One number a ladder


def test_student_interval_and_sign_test_agree_with_scipy():
    values = np.array([0.3, 0.5, -0.1, 0.4, 0.0])
    got, reference = over_ladders(values, level=0.9), stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (got.n, got.mean, got.positive) == (5, pytest.approx(0.22), 3)
    assert (got.low, got.high) == (pytest.approx(reference.low), pytest.approx(reference.high))
    assert got.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert [over_ladders([same] * 3).p for same in (0.0, 2.0)] == [1, 0]
    assert got.sign_p == pytest.approx(10 / 16)  # 3 of the 4 that are not zero, and as rare or rarer
    assert over_ladders([0.0, 0.0]).sign_p == 1
    assert over_ladders([1.0, 2.0]).low == pytest.approx(1.5 - 12.7062 / 2, abs=1e-4)


def test_text_says_mean_interval_and_count():
    assert over_ladders([0.31, 0.53] * 6).text() == "+0.42 [+0.35, +0.49], 12 of 12 ladders"
    assert over_ladders([-1.0, -1.0, -1.0]).text(0) == "-1 [-1, -1], 0 of 3 ladders"


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], [1.0, np.inf], np.ones((2, 2))])
def test_fewer_than_two_ladders_or_holes_are_refused(values):
    with pytest.raises(ValueError, match="values: expected at least 2 finite numbers"):
        over_ladders(values)


@pytest.mark.parametrize("n", [4, 8, 12])
def test_intervals_cover_and_sign_tests_keep_their_exact_size(n):
    """Normal values with mean 0, seen through a pair of predictors that share most of what moves them."""
    rng, draws = np.random.default_rng(n), 700
    shared = rng.normal(scale=5, size=(draws, n))
    values, rivals = shared + rng.normal(size=(2, draws, n))
    found = [paired(a, b) for a, b in zip(values, rivals, strict=True)]
    assert _within(np.mean([f.low <= 0 <= f.high for f in found]), 0.95, draws)
    wins = np.arange(n + 1)
    size = sum(stats.binom.pmf(k, n, 0.5) for k in wins if stats.binomtest(k, n).pvalue <= 0.05)
    assert _within(np.mean([f.sign_p <= 0.05 for f in found]), size, draws)


def test_skewed_ladders_are_covered_less_often_and_that_is_known():
    """Student's interval of 8 exponential values covers their mean in about 89 % of cases, not in 95 %."""
    draws = np.random.default_rng(0).exponential(size=(1000, 8)) - 1
    covered = np.mean([f.low <= 0 <= f.high for f in map(over_ladders, draws)])
    assert 0.85 < covered < 0.92


def test_holms_correction_by_hand():
    rng = np.random.default_rng(3)
    family = {
        name: over_ladders(mean + rng.normal(size=8)) for name, mean in zip("abcd", (0, 3, 1, 0), strict=True)
    }
    order = sorted(family, key=lambda name: family[name].p)
    stepped = {name: (4 - i) * family[name].p for i, name in enumerate(order)}
    expected = {name: min(1, max(stepped[o] for o in order[: i + 1])) for i, name in enumerate(order)}
    assert holm(family).to_dict() == pytest.approx(expected)
    assert list(holm(family).index) == list("abcd")
    with pytest.raises(ValueError, match="family: expected at least one finding"):
        holm({})


def test_a_corrected_family_without_truth_is_wrong_once_in_twenty_though_each_test_is(monkeypatch):
    """Five predictors that share what moves them, none ahead: some interval is wrong far more often."""
    # statsmodels collects the garbage of the whole process at every correction: minutes, for 500 of them.
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    rng, draws = np.random.default_rng(4), 500
    values = rng.normal(size=(draws, 5, 12)) + rng.normal(size=(draws, 1, 12)) / 2
    families = [{str(i): over_ladders(own) for i, own in enumerate(draw)} for draw in values]
    some = np.array([[min(f.p for f in family.values()), holm(family).min()] for family in families]) < 0.05
    assert some[:, 0].mean() > 0.12
    assert some[:, 1].mean() <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / draws)
    assert some[:, 1].mean() > 0.01


def test_a_paired_difference_sees_what_two_intervals_do_not():
    level = np.linspace(-1, 1, 12)
    values, rivals = level + 0.1 + 0.02 * np.cos(np.arange(12)), level
    assert over_ladders(values).low < over_ladders(rivals).high  # they overlap
    assert paired(values, rivals).low > 0.08
    with pytest.raises(ValueError, match="rivals: expected 12 numbers, one a ladder, got 11"):
        paired(values, rivals[:11])


def test_pairs_of_series_are_matched_by_ladder():
    values = pd.Series({"a": 1.0, "b": 2.0, "c": 4.0})
    assert paired(values, (values - 1)[["c", "a", "b"]]).mean == pytest.approx(1)
    assert paired(values, (values - 1)[["c", "a", "b"]]).high == pytest.approx(1)
    with pytest.raises(ValueError, match="rivals: expected ladders"):
        paired(values, pd.Series({"a": 1.0, "b": 2.0, "d": 4.0}))


def test_by_ladder_keeps_the_order_of_appearance():
    frame = pd.DataFrame({"ladder": ["b", "a", "b", "c"], "y": [1.0, 2.0, 3.0, 4.0]})
    got = by_ladder(frame, lambda rows: rows["y"].sum())
    assert got.to_dict() == {"b": 4, "a": 2, "c": 4}
    assert list(got.index) == ["b", "a", "c"]
    assert got.index.name == "ladder"
    with pytest.raises(ValueError, match="frame: expected columns"):
        by_ladder(frame, len, ladder="run")


# Predicting a ladder that the fit has not seen


def _ladders(rng, ladders=12, rungs=40, *, offset=0.0, slope=1.0, noise=0.5):
    """y = offset of the ladder + slope x + noise, x of mean 0 and variance 1 in each ladder."""
    x = np.linspace(-1, 1, rungs)
    x = np.tile(x / x.std(), ladders)
    which = np.repeat(np.arange(ladders), rungs)
    y = offset * rng.normal(size=ladders)[which] + slope * x + noise * rng.normal(size=len(x))
    return pd.DataFrame({"ladder": which, "x": x, "y": y})


def test_r2_of_a_left_out_ladder_is_what_offsets_and_noise_leave():
    """1 - (offset^2 (1 + 1/11) + noise^2) / (slope^2 + noise^2): the others' mean offset is off by 1/11, too."""
    rng, draws = np.random.default_rng(0), 40
    found = [left_out_ladder(_ladders(rng, offset=0.4), "x", "y") for _ in range(draws)]
    r2 = np.array([table["r2"].mean() for table in found])
    truth = 1 - (0.4**2 * 12 / 11 + 0.25) / 1.25
    assert abs(r2.mean() - truth) < 4 * r2.std() / np.sqrt(draws)
    assert abs(r2.mean() - (1 - 0.25 / 1.25)) > 4 * r2.std() / np.sqrt(draws)  # offsets are not forgiven
    bias = np.concatenate([table["bias"] for table in found])
    assert np.mean(bias**2) == pytest.approx(0.4**2 * 12 / 11, rel=4 * np.sqrt(2 / len(bias)))


def test_a_left_out_ladder_by_hand():
    frame = pd.DataFrame(
        {
            "ladder": ["a"] * 2 + ["b"] * 4,
            "x": [0.0, 1.0, 0.0, 1.0, 2.0, 3.0],
            "y": [1.0, 3.0, 0.0, 1.0, 2.0, 4.0],
        }
    )
    table = left_out_ladder(frame, "x", "y")
    # From a: 1 + 2x, so b is predicted as 1, 3, 5, 7; about its mean of 7/4 its squares sum to 35/4.
    assert table.loc["b"].tolist() == pytest.approx([1 - 23 / 8.75, 1.0, 9 / 4, np.sqrt(23 / 4)])
    # From b: slope 13/10 and intercept 7/4 - 39/20 = -1/5.
    assert table.loc["a"].tolist() == pytest.approx(
        [1 - (1.2**2 + 1.9**2) / 2, 1.0, -1.55, np.sqrt(5.05 / 2)]
    )
    assert list(table.columns) == ["r2", "spearman", "bias", "rmse"]


def test_every_ladder_of_a_fit_counts_alike():
    """Ladder b, seen at 99 times as many rungs, does not draw the line to itself."""
    train = pd.DataFrame(
        {"ladder": ["a"] * 2 + ["b"] * 198, "x": [0.0, 1.0] * 100, "y": [0.0, 1.0] + [2.0, 3.0] * 99}
    )
    _, line = predict_ladders(train, train, "x", "y")
    assert line == (pytest.approx(1.0), pytest.approx(1.0))
    assert isinstance(line, Line)


def test_a_harmful_predictor_is_worse_than_the_ladders_own_mean():
    """Its slope in each ladder has another sign, so the others mislead; a line kept from falling claims nothing."""
    rng = np.random.default_rng(1)
    signs = np.repeat([1, -1] * 6, 40)
    frame = _ladders(rng, noise=0.2).assign(y=lambda rows: signs * rows["x"] + 0.2 * rng.normal(size=480))
    table = left_out_ladder(frame, "x", "y", rising=False)
    assert (table["r2"] < 0).all()
    falling = left_out_ladder(frame.assign(y=-frame["x"]), "x", "y")
    assert falling["r2"].tolist() == pytest.approx([0.0] * 12)  # a constant at what happens to be the mean
    assert falling["spearman"].isna().all()
    assert left_out_ladder(frame.assign(y=-frame["x"]), "x", "y", rising=False)["r2"].min() == pytest.approx(
        1
    )


def test_the_left_out_ladder_is_not_seen():
    """A column that is 1 on one ladder only explains that ladder, if it may look; left out, it is useless."""
    frame = _ladders(np.random.default_rng(2), noise=0.1)
    frame["y"] += 5.0 * (frame["ladder"] == 3)
    frame["mark"] = (frame["ladder"] == 3).astype(float)
    seen, _ = predict_ladders(frame, frame, ["x", "mark"], "y")
    assert seen.loc[3, "r2"] > 0.98
    assert left_out_ladder(frame, ["x", "mark"], "y").loc[3, "r2"] < -10
    assert left_out_ladder(frame, ["x", "mark"], "y").drop(3)["r2"].min() > 0.9


def test_a_spline_basis_predicts_a_hump_that_a_line_cannot():
    frame = _ladders(np.random.default_rng(3), noise=0.1).assign(
        y=lambda rows: rows["x"] ** 2 + rows["y"] - rows["x"]
    )
    basis = spline_basis(quantile_knots(frame["x"], 5))
    assert left_out_ladder(frame, "x", "y")["r2"].max() < 0.05
    assert left_out_ladder(frame, "x", "y", basis=basis)["r2"].min() > 0.95
    assert predict_ladders(frame, frame, "x", "y", basis=basis)[1].slope.shape == (4,)
    with pytest.raises(ValueError, match="x: expected one column for a basis"):
        left_out_ladder(frame, ["x", "y"], "y", basis=basis)


def test_what_a_left_out_prediction_does_not_hang_on():
    frame = _ladders(np.random.default_rng(4), ladders=5, offset=0.3)
    table = left_out_ladder(frame, "x", "y")
    pd.testing.assert_frame_equal(left_out_ladder(_shuffled(frame), "x", "y").loc[table.index], table)
    named = left_out_ladder(frame.assign(ladder=frame["ladder"].map(lambda k: f"run {9 - k}")), "x", "y")
    np.testing.assert_allclose(named, table)
    for units in (1e-12, 1e9):
        scaled = frame.assign(x=units * (frame["x"] + 7), y=3 * frame["y"] - 1)
        other = left_out_ladder(scaled, "x", "y")
        np.testing.assert_allclose(other[["r2", "spearman"]], table[["r2", "spearman"]])
        np.testing.assert_allclose(other[["bias", "rmse"]], 3 * table[["bias", "rmse"]], atol=1e-9)
    three = _ladders(np.random.default_rng(5), ladders=3)
    _, (intercept, slope) = predict_ladders(three, frame, "x", "y")
    assert [intercept, slope] == pytest.approx(np.polyfit(three["x"], three["y"], 1)[::-1])


def test_a_constant_predictor_predicts_the_others_mean():
    frame = _ladders(np.random.default_rng(6), ladders=3, offset=1.0).assign(x=0.1)
    means = frame.groupby("ladder")["y"].mean()
    expected = [(means.sum() - mean) / 2 - mean for mean in means]
    for rising in (True, False):
        assert left_out_ladder(frame, "x", "y", rising=rising)["bias"].tolist() == pytest.approx(expected)
        elsewhere, line = predict_ladders(frame, frame.assign(x=np.arange(120.0)), "x", "y", rising=rising)
        assert line.slope == 0  # and not round-off of the mean divided by round-off of the spread
        assert elsewhere["spearman"].isna().all()


def test_holes_and_single_ladders_are_refused():
    frame = _ladders(np.random.default_rng(7), ladders=2)
    with pytest.raises(ValueError, match="frame: expected at least 2 ladders, got 1"):
        left_out_ladder(frame[frame["ladder"] == 0], "x", "y")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        left_out_ladder(frame.assign(x=np.nan), "x", "y")
    with pytest.raises(ValueError, match="frame: expected rows that each name their ladder"):
        left_out_ladder(frame.assign(ladder=np.nan), "x", "y")


# Pairs of rungs of different ladders


def _matched(rng, ladders=12, rungs=20, *, of_ladder=1.0):
    """Score and outcome with nothing in common but that each has an effect of the ladder; the outcome rises with x."""
    which, x = np.repeat(np.arange(ladders), rungs), rng.uniform(size=ladders * rungs)
    effects = of_ladder * rng.normal(size=(2, ladders))[:, which] + rng.normal(size=(2, len(x)))
    return pd.DataFrame({"ladder": which, "x": x, "score": effects[0], "outcome": effects[1] + x})


def test_pairs_against_all_combinations():
    frame = _shuffled(_matched(np.random.default_rng(0), ladders=4, rungs=8))
    got = {tuple(pair) for pair in pairs(frame, on="x", within=0.1).to_numpy()}
    expected = {
        (i, j)
        for i in frame.index
        for j in frame.index
        if i < j and abs(frame["x"][i] - frame["x"][j]) < 0.1 and frame["ladder"][i] != frame["ladder"][j]
    }
    assert got == expected
    pd.testing.assert_frame_equal(
        pairs(frame, on="x", within=0.1), pairs(frame.sort_index(), on="x", within=0.1)
    )


def test_disjoint_pairs_take_the_closest_first_and_use_no_row_twice():
    frame = pd.DataFrame({"ladder": ["a", "b", "a", "b"], "x": [0.0, 0.3, 0.5, 0.9]}, index=list("pqrs"))
    assert pairs(frame, on="x", within=1.0, disjoint=True).to_numpy().tolist() == [["p", "s"], ["q", "r"]]
    ties = pd.DataFrame({"ladder": [0, 1, 2, 1], "x": [0.5] * 4})
    assert pairs(ties, on="x", within=0.1, disjoint=True).to_numpy().tolist() == [[0, 1], [2, 3]]
    many = _matched(np.random.default_rng(1))
    taken = pairs(_shuffled(many), on="x", within=0.05, disjoint=True)
    assert not pd.concat([taken["i"], taken["j"]]).duplicated().any()
    pd.testing.assert_frame_equal(taken, pairs(many, on="x", within=0.05, disjoint=True))
    everything = pairs(many, on="x", within=0.05).merge(taken, how="left", indicator=True)
    used = set(taken["i"]) | set(taken["j"])
    left = everything[everything["_merge"] == "left_only"]
    assert all(i in used or j in used for i, j in zip(left["i"], left["j"], strict=True))  # nothing more fits


def test_pairs_without_any_and_labels_twice():
    frame = _matched(np.random.default_rng(2), ladders=2, rungs=3)
    for disjoint in (False, True):
        none = pairs(frame, on="x", within=0.0, disjoint=disjoint)
        assert (len(none), list(none.columns)) == (0, ["i", "j"])
    with pytest.raises(ValueError, match="frame: expected labels that occur once each"):
        pairs(pd.concat([frame, frame]), on="x", within=1.0)


def test_concordance_by_hand():
    frame = pd.DataFrame(
        {"ladder": [0, 1, 2, 3], "score": [0.0, 1.0, 1.0, 2.0], "outcome": [0.0, 5.0, 4.0, 4.0], "x": 0.0}
    )
    every = pairs(frame, on="x", within=1.0)
    # Of six pairs one has equal outcomes; 0 loses thrice as it should, 1-2 is a tie of scores, 1-3 is wrong.
    got = concordance(frame, every, "score", "outcome")
    assert (got["share"], got["pairs"]) == (pytest.approx(3.5 / 5), 5)
    assert 0 <= got["low"] <= got["share"] <= got["high"] <= 1
    flipped = concordance(frame, every.rename(columns={"i": "j", "j": "i"}), "score", "outcome")
    assert flipped == got
    none = concordance(frame.assign(outcome=1.0), every, "score", "outcome")
    assert none["pairs"] == 0
    assert np.isnan([none["share"], none["low"], none["high"]]).all()


def test_concordance_under_the_null_is_one_half_and_the_clustered_interval_covers_it():
    """Of 12 ladders with effects of their own: about 93 %; an interval that counted pairs as draws, about 27 %."""
    rng, draws, covered, naive, shares = np.random.default_rng(3), 250, 0, 0, []
    for draw in range(draws):
        frame = _matched(rng)
        got = concordance(
            frame, pairs(frame, on="x", within=0.05), "score", "outcome", resamples=300, seed=draw
        )
        covered += got["low"] <= 0.5 <= got["high"]
        naive += abs(got["share"] - 0.5) < 1.96 * 0.5 / np.sqrt(got["pairs"])
        shares.append(got["share"])
    assert abs(np.mean(shares) - 0.5) < 4 * np.std(shares) / np.sqrt(draws)
    assert 0.87 < covered / draws < 0.98
    assert naive / draws < 0.5


def test_concordance_sees_a_score_and_its_strength():
    """Score and outcome normal with correlation 0.6: the share is 1/2 + arcsin(0.6) / pi."""
    rng = np.random.default_rng(4)
    frame = _matched(rng, rungs=60, of_ladder=0.0)
    frame["outcome"] = 0.6 * frame["score"] + 0.8 * rng.normal(size=len(frame))
    got = concordance(frame, pairs(frame, on="x", within=0.2), "score", "outcome")
    assert got["share"] == pytest.approx(0.5 + np.arcsin(0.6) / np.pi, abs=0.04)
    assert got["low"] > 0.6


def test_what_concordance_does_not_hang_on():
    frame = _matched(np.random.default_rng(5), ladders=6)
    table = pairs(frame, on="x", within=0.1)
    got = concordance(frame, table, "score", "outcome")
    assert concordance(_shuffled(frame), _shuffled(table), "score", "outcome") == got
    monotone = frame.assign(score=np.exp(frame["score"]), outcome=frame["outcome"] ** 3)
    assert concordance(monotone, table, "score", "outcome") == got
    upside_down = concordance(frame.assign(score=-frame["score"]), table, "score", "outcome")
    assert upside_down["share"] == pytest.approx(1 - got["share"])
    assert upside_down["low"] == pytest.approx(1 - got["high"])
    assert concordance(frame, table, "score", "outcome", seed=1)["low"] != got["low"]


def test_concordance_refuses_what_is_no_pair_of_ladders():
    frame = _matched(np.random.default_rng(6), ladders=2, rungs=2)
    with pytest.raises(ValueError, match="pair_table: expected rows of different ladders"):
        concordance(frame, pd.DataFrame({"i": [0], "j": [1]}), "score", "outcome")
    with pytest.raises(ValueError, match=r"pair_table: expected labels of frame, got \[9\] in j"):
        concordance(frame, pd.DataFrame({"i": [0], "j": [9]}), "score", "outcome")
