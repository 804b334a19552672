"""The tables of the study of longer answers: what was planted in made-up records comes out, and errors are refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import horizons_records as made
from replicate.runs import horizons_tables as horizons
from replicate.statistics.over_ladders import over_ladders, paired


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("horizons")
    made.write(folder)
    return horizons.load(folder)


@pytest.fixture(scope="module")
def wide(tables):
    return horizons.by_method(tables)


def test_a_cell_is_read_by_its_settings(tables):
    """Which agree with its name in all 76; a cell that runs something else than it is called is refused."""
    for row in tables.cells.itertuples():
        name = (
            f"{row.method} T{row.T} {row.density}"
            if row.part == "methods"
            else f"rungs T{row.T} {row.density}"
        )
        assert row.cell == name + (f" N{row.group}" if row.group != 8 else "")
        assert row.samples == 64
    assert len(tables.cells) == 76
    other = made.cells()
    other.loc[other.cell == "ppo T4 all", "CREDIT"] = "outcome"
    with pytest.raises(ValueError, match="expected 'ppo T4 all' to run 'ppo', got the settings of 'grpo'"):
        horizons.settings(other)


def test_the_outcome_is_the_sampled_reward_and_of_one_token_the_closed_form(tables):
    """In the records the closed form gains half as much at T > 1."""
    found = horizons.outcomes(tables)
    one = found["T"] == 1
    assert found.gained[one].to_numpy() == pytest.approx(found.gain[one], abs=1e-6)
    assert found.gained[~one].to_numpy() == pytest.approx(2 * found.gain[~one], abs=1e-6)
    assert found.gained.notna().all()


def test_means_are_over_all_budgets_and_a_cell_without_one_is_named(tables):
    found = horizons.mean_gains(tables).set_index("cell").gained
    for cell in tables.cells[tables.cells.part == "methods"].itertuples():
        assert found[cell.cell].mean() == pytest.approx(made.gain(cell), abs=0.01)
    cut = tables.gains[(tables.gains.cell != "ppo T4 all") | (tables.gains.budget < 40)]
    with pytest.raises(ValueError, match="got 'ppo T4 all' that was not"):
        horizons.mean_gains(dataclasses.replace(tables, gains=cut))


def test_methods_stand_side_by_side_on_each_ladder(tables, wide):
    assert wide.shape == (4, 67)
    step = tables.gains.step.where((tables.gains.cell != "ppo T4 all") | (tables.gains.seed > 0), 999)
    with pytest.raises(ValueError, match="expected one rung a ladder of a method's cell"):
        horizons.by_method(dataclasses.replace(tables, gains=tables.gains.assign(step=step)))
    missing = tables.gains[(tables.gains.cell != "ppo T4 all") | (tables.gains.ladder != "h2")]
    with pytest.raises(ValueError, match="got some without ppo at T = 4, 'all', groups of 8"):
        horizons.by_method(dataclasses.replace(tables, gains=missing))


def test_curves_begin_at_nothing_and_count_completions(tables):
    found = horizons.curves(tables)
    assert (found.gained[found.budget == 0] == 0).all()
    assert (found.samples == 64 * found.budget).all()
    assert sorted(found.budget.unique()) == [0, 5, 10, 20, 40]
    assert found.method.unique().tolist() == list(horizons.METHODS)
    own = tables.gains[
        (tables.gains.cell == "ppo T4 all") & (tables.gains.ladder == "h3") & (tables.gains.budget == 20)
    ]
    where = (found.method == "ppo") & (found["T"] == 4) & (found.density == "all") & (found.ladder == "h3")
    expected = (own.sampled - own.sampled_start).mean()
    assert found[where & (found.budget == 20)].gained.item() == pytest.approx(expected)


@pytest.mark.parametrize(("density", "credit"), made.SLOPES)
def test_planted_slopes_of_the_ratio_are_found(tables, density, credit):
    found = horizons.slopes(horizons.noise(tables), credit, density=density)
    assert found.index.tolist() == list(made.LADDERS)
    assert found.mean() == pytest.approx(made.SLOPES[density, credit], abs=0.06)


def test_ratios_are_of_sums_over_rungs_and_one_without_signal_is_left_out(tables):
    """One rung far below zero would take the mean of single ratios with it; a horizon below zero has no logarithm."""
    ratios = horizons.noise(tables)
    own = tables.costates[(tables.costates.cell == "rungs T8 all") & (tables.costates.ladder == "h1")]
    own = own[(own.block == "all") & (own.credit == "critic")]
    where = (ratios["T"] == 8) & (ratios.ladder == "h1") & (ratios.credit == "critic")
    assert ratios[where].ratio.item() == pytest.approx(own.signal.sum() / own.noise.sum())
    lost = ratios.assign(ratio=ratios.ratio.where((ratios["T"] < 16) | (ratios.ladder != "h2"), -1.0))
    full, part = (horizons.slopes(table, "critic") for table in (ratios, lost))
    assert (full != part).tolist() == [False, True, False, False]
    none = ratios.assign(ratio=ratios.ratio.where((ratios["T"] < 4) | (ratios.ladder != "h2"), -1.0))
    found = horizons.slopes(none, "critic")
    assert found.isna().tolist() == [False, True, False, False]
    assert horizons.over(found) is None
    assert horizons.over(full) == over_ladders(full)
    with pytest.raises(ValueError, match="under credit 'critic' and density 'each', got none"):
        horizons.slopes(ratios, "critic", density="each")


def test_where_nothing_is_ever_right_nothing_is_concluded(tmp_path):
    """Paid at the end of 4 tokens or more nobody earns: no signal, no noise, no gain, no order."""
    made.write(tmp_path, dead=(4, 8, 16))
    tables = horizons.load(tmp_path)
    ratios = horizons.noise(tables)
    assert ratios[(ratios.density == "all") & (ratios["T"] > 2)].ratio.isna().all()
    assert horizons.over(horizons.slopes(ratios, "critic")) is None
    assert horizons.over(horizons.slopes(ratios, "outcome")).high < 0
    found = horizons.orders(horizons.scored(tables))
    assert (found[(found.density == "all") & (found["T"] > 2)].spearman == 0).all()
    margins = horizons.margins(horizons.by_method(tables))
    late = margins[(margins.density == "all") & (margins["T"] == 16)].margin
    assert horizons.word(over_ladders(late)) == "undecided"


def test_tokens_and_labels_have_a_ratio_for_each_place(tables):
    for block in ("token", "label"):
        found = horizons.noise(tables, block)
        assert found.groupby("T")["index"].nunique().to_dict() == {T: T for T in made.HORIZONS}


def test_the_planted_score_orders_the_gains_and_a_scattered_one_less(tables):
    """The size that kappa was multiplied with is gone; the same score shuffled among rungs orders nothing."""
    frame = horizons.scored(tables)
    found = horizons.orders(frame).pivot(index=["density", "T", "ladder"], columns="score", values="spearman")
    assert len(found) == 9 * 4
    assert found[horizons.SCORE_AT_T].min() > 0.6
    ahead = paired(found[horizons.SCORE_AT_T], found[horizons.SCORE_AT_ONE])
    assert ahead.low > 0
    rng = np.random.default_rng(0)
    by_chance = frame.groupby(["cell", "ladder"])[horizons.SCORE_AT_T].transform(rng.permutation)
    shuffled = horizons.orders(frame.assign(**{horizons.SCORE_AT_T: by_chance}), [horizons.SCORE_AT_T])
    assert abs(shuffled.spearman.mean()) < 0.2


def test_a_constant_score_or_gain_orders_nothing(tables):
    frame = horizons.scored(tables)
    assert (horizons.orders(frame.assign(gained=0.0)).spearman == 0).all()
    empty = tables.longer.assign(whole_empirical=0.0, whole_kappa=0.0)
    found = horizons.scored(dataclasses.replace(tables, longer=empty))
    assert (found[horizons.SCORE_AT_T] == 0).all()
    with pytest.raises(ValueError, match="longer: expected a row for each of 288"):
        horizons.scored(dataclasses.replace(tables, longer=tables.longer[1:]))


def test_margins_are_over_the_better_rival_of_each_ladder(wide):
    found = horizons.margins(wide)
    mean = found.groupby(["rivals", "density", "T", "group"]).margin.mean()
    free = "GRPO, leave-one-out"
    assert mean[free, "all", 16, 8] == pytest.approx(0.1, abs=0.02)
    assert mean[free, "all", 2, 8] == pytest.approx(0.0, abs=0.02)
    assert mean["and reward-to-go", "each", 4, 8] == pytest.approx(-0.02, abs=0.02)
    assert mean[free, "all", 8, 2] == pytest.approx(0.08, abs=0.02)
    one = (
        found[(found.rivals == free) & (found.density == "all") & (found["T"] == 4)]
        .set_index("ladder")
        .margin
    )
    better = np.maximum(wide["grpo", 4, "all", 8], wide["rloo", 4, "all", 8])
    assert one.to_numpy() == pytest.approx((wide["ppo", 4, "all", 8] - better).loc[one.index])
    assert set(found[found.group != 8].rivals) == {free}


def test_the_same_trainer_is_within_seed_noise_and_one_that_is_worse_is_not():
    for off, within in ((0.0, True), (0.1, False)):
        found = horizons.areas(made.trl(np.random.default_rng(5), off=off))
        for trainer in ("GRPO", "RLOO"):
            assert (abs(horizons.apart(found.TRL[trainer], found.ours[trainer])) < 2) == within
    early = horizons.areas(made.trl(np.random.default_rng(5)), until=5)
    assert np.mean(early.ours["GRPO"]) < np.mean(
        horizons.areas(made.trl(np.random.default_rng(5))).ours["GRPO"]
    )


def test_apart_is_welchs_statistic():
    from scipy import stats

    one, other = [0.1, 0.4, 0.3], [0.2, 0.9, 0.5, 0.4]
    assert horizons.apart(one, other) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).statistic)
    assert horizons.apart([1.0, 1.0], [0.0, 0.0]) == float("inf")
    with pytest.raises(ValueError, match="expected at least 2 on either side, got 1 and 2"):
        horizons.apart([1.0], [1.0, 2.0])


def test_words_go_by_the_interval():
    above, below, around = (over_ladders(np.array([0.9, 1.0, 1.1, 1.0]) + x) for x in (0.0, -2.0, -1.0))
    assert [horizons.word(one) for one in (above, below, around)] == ["confirmed", "refuted", "undecided"]
    assert horizons.word(None) == "undecided"
    said = [horizons.word_not_above({1: one, 2: below}, 0.5) for one in (above, below, around)]
    assert said == ["refuted", "confirmed", "confirmed"]
    assert horizons.word_not_above({1: around}, 0.05) == "undecided"


def test_without_trls_records_the_rest_is_there(tmp_path):
    made.write(tmp_path, with_trl=False)
    found = horizons.load(tmp_path)
    assert found.trl is None
    assert isinstance(found.gains, pd.DataFrame)
