"""A study of settings as tables: complete, joined rung by rung, and what was planted in its records is found."""

import numpy as np
import pandas as pd
import pytest

import sensitivity_records
from replicate.impact import by_cell
from replicate.impact.scores import LAW
from replicate.runs import sensitivity_tables
from replicate.statistics import factorial

BUDGETS = [5, 10, 20, 40]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    measured = sensitivity_records.write(folder)
    return folder, measured, sensitivity_tables.load(folder)


@pytest.fixture
def tables(made):
    return made[2]


def test_a_folder_without_a_study_is_one_line(tmp_path, made):
    with pytest.raises(
        ValueError, match=r"no published study of RL's settings .*run `replicate study"
    ) as error:
        sensitivity_tables.load(tmp_path / "none")
    assert str(error.value).isprintable()
    folder = tmp_path / "half"
    sensitivity_records.write(folder)
    cells = pd.read_parquet(folder / "cells.parquet")
    cells[cells.cell != "kl 1"].to_parquet(folder / "cells.parquet", index=False)
    with pytest.raises(ValueError, match=r"expected gains of exactly its cells, got \['kl 1'\] on one side"):
        sensitivity_tables.load(folder)


def test_settings_come_back_as_they_were_set(tables):
    """float32 of 0.1 is not 0.1."""
    assert sorted(tables.cells.KL_COEF.unique()) == [0.0, 0.01, 0.1, 1.0]
    assert tables.cells.set_index("cell").LEARNING_RATE["rate 1/4"] == 5e-5


def test_the_cells_of_the_fraction_are_one_of_resolution_four(tables):
    own = sensitivity_tables.factorial(tables, tables.cells[["cell"]])
    design = factorial.coded(own, sensitivity_tables.LEVELS)
    assert (len(design), factorial.resolution(design)) == (32, 4)
    # The letters in a cell's level say the same.
    high = tables.cells[tables.cells.group == "factorial"].level
    letters = ["".join(np.array(list("ABCDEFGHJ"))[row > 0]) for row in design.to_numpy()]
    assert letters == high.tolist()


def test_every_curve_moves_what_it_says_around_its_centre(tables):
    found = sensitivity_tables.curves(tables)
    settings = tables.cells.set_index("cell")[list(sensitivity_records.BASE)]
    moved = {
        name: [c for c in settings if settings.loc[rows.cell, c].nunique() > 1]
        for name, rows in found.groupby("factor", sort=False)
    }
    assert moved == {
        "learning rate": ["LEARNING_RATE"], "SGD": ["LEARNING_RATE"], "SGD without std": ["LEARNING_RATE"],
        "std": ["SCALE"], "reward": ["METHOD", "SCALE"], "reward scale with std": ["REWARD_SCALE"],
        "reward scale under SGD without std": ["REWARD_SCALE"], "prompts": ["PROMPTS"], "group": ["GROUP_SIZE"],
        "KL weight": ["KL_COEF"], "iterations": ["ITERATIONS"], "clip at 8 iterations": ["CLIP"],
    }  # fmt: skip
    levels = found.groupby("factor", sort=False)["level"].agg(list)
    assert levels["prompts"] == ["4", "8", "16", "32"]
    assert levels["learning rate"] == ["0.25", "1", "4"]
    assert levels["reward"] == ["0/1", "graded", "graded without std"]
    column = {"prompts": "PROMPTS", "group": "GROUP_SIZE", "KL weight": "KL_COEF", "iterations": "ITERATIONS"}
    for name, setting in column.items():
        rows = found[found.factor == name]
        assert settings.loc[rows.cell, setting].tolist() == rows.level.astype(float).tolist()


def test_responses_are_means_of_the_records_with_the_measured_rung_beside_them(made):
    _, measured, tables = made
    frame = sensitivity_tables.responses(tables, BUDGETS)
    assert len(frame) == 61 * 4 * 12
    joined = frame.merge(measured, on=["ladder", "step"], suffixes=("", "_made"))
    assert joined.law.to_numpy() == pytest.approx(joined.law_made.to_numpy(), rel=1e-5)
    assert joined.V.to_numpy() == pytest.approx(joined.V_made.to_numpy(), rel=1e-5)
    own = tables.gains[
        (tables.gains.cell == "kl 1") & (tables.gains.ladder == "s3") & (tables.gains.step == 40)
    ]
    row = frame[(frame.cell == "kl 1") & (frame.ladder == "s3") & (frame.step == 40)]
    assert row.gain.item() == pytest.approx(own.gain.mean())
    long = sensitivity_tables.responses(tables, [5, 160], by_budget=True)
    assert long.groupby("cell").budget.nunique().value_counts().to_dict() == {1: 52, 2: 9}
    with pytest.raises(ValueError, match=r"budgets: expected cells that were run to .*160.* got 'no std'"):
        sensitivity_tables.responses(tables, [5, 160])


def test_what_was_planted_is_found(tables):
    """V orders the gains of plain SGD, the law those of normalised updates; of the factors the rate does most."""
    frame = sensitivity_tables.responses(tables, BUDGETS)
    mean = by_cell.over(by_cell.ordering(frame)).set_index(["cell", "score"])["mean"]
    assert mean["sgd no std", "V"] > mean["sgd no std", LAW]
    assert mean["base", LAW] > mean["base", "V"]
    own = sensitivity_tables.factorial(tables, frame)
    found = factorial.over_ladders_effects(own, sensitivity_tables.LEVELS, "gain").set_index("term")
    assert found["mean"].abs().idxmax() == "rate"
    assert found.holm["rate"] < 0.05
    assert found.holm["group"] > 0.05


def test_labels_are_one_for_each_cell_and_sort_the_fraction(tables):
    found = sensitivity_tables.labels(tables)
    assert sorted(found.index) == sorted(tables.cells.cell)
    assert found.is_unique
    assert found["f ABCEJ"] == "SGD, no std, x 4: EJ"
    assert found["f FGHJ"] == "AdamW, x 0.25: FGHJ"
    assert found.iloc[:29].tolist() == tables.cells.cell.tolist()[:29]


def test_alarms_are_shares_of_all_updates_of_a_cell(tables):
    found = sensitivity_tables.alarm_shares(tables)
    assert found.index.tolist() == tables.cells.cell.tolist()
    assert found.loc["group 2", "no signal"] == pytest.approx(4 * 8 / (4 * 12 * 40))
    assert found.loc["base", "no signal"] == pytest.approx(4 * 8 / (4 * 12 * 160))
    assert found.loc["rate 4"].tolist() == [0, 0]


def test_a_cell_whose_runs_broke_is_compared_nowhere(tmp_path):
    """Left out where less than half of a ladder's runs finished; with fewer gone it stays, on the rungs left."""
    measured = sensitivity_records.write(tmp_path / "whole")
    steps = sorted(measured.step.unique())
    broken = [
        {"ladder": "s1", "cell": cell, "step": step, "seed": 0, "error": "x"}
        for cell, gone in (("prompts 4", steps[:7]), ("prompts 8", steps[:2]))
        for step in gone
    ]
    sensitivity_records.write(tmp_path / "broken", broken=broken)
    tables = sensitivity_tables.load(tmp_path / "broken")
    share = sensitivity_tables.finished(tables)
    assert share["prompts 4"] == pytest.approx(5 / 12)
    assert share["prompts 8"] == pytest.approx(10 / 12)
    assert share["base"] == 1
    found = sensitivity_tables.responses(tables, [5, 10, 20, 40])
    assert "prompts 4" not in set(found.cell)
    assert len(found[(found.cell == "prompts 8") & (found.ladder == "s1")]) == 10
