"""Cells of a study: which settings they are, on which rungs they run, what is published of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from replicate.cli import app
from replicate.ladder.selection import spread
from replicate.runs import cells, jobs, study

PARAMS = Path(__file__).parents[2] / "params"


def small(folder, **changes):
    """A study of two ladders and three cells of a second each."""
    values = yaml.safe_load((PARAMS / "sensitivity.yaml").read_text())
    for ladder in values["LADDERS"]:
        ladder |= {"ROLE": "development", "TINY_COOLDOWN": 0}
    values["LADDERS"] = values["LADDERS"][:2]
    values["CELLS"] = [{"NAME": "base"}, {"NAME": "rate 4", "FACTOR": "rate", "LEVEL": 4, "RATE": 4.0}]
    values["FACTORS"], values["GENERATORS"] = [], {}
    values |= {
        "PREREGISTRATION": "page.md", "RUNGS_OF_EACH": 3, "TINY_STEPS": 40, "TINY_EVERY": 10, "BUDGETS": [1, 2],
        "EVAL_PROMPTS": 16, "MEASURE_PROMPTS": 16, "POOL_PROMPTS": 64, "PROMPTS": 2, "TINY_LAYERS": 1,
        "TINY_HIDDEN": 16, "TINY_BATCH": 8, "RUN_DIR": str(folder / "run"), "LADDER_DIR": str(folder / "ladders"),
    }  # fmt: skip
    (folder / "page.md").write_text("```yaml\na: 1\n```\n")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def test_the_committed_study_is_a_fraction_of_resolution_four():
    """Every factor is balanced, no two are alike, and no factor is the product of two others."""
    committed = study.load(PARAMS / "sensitivity.yaml")
    signs = np.array([list(s.values()) for s in cells.signs_of(9, committed.generators)])
    assert signs.shape == (32, 9)
    assert (signs.sum(0) == 0).all()
    assert (signs.T @ signs == 32 * np.eye(9)).all()
    for i in range(9):
        for j in range(i):
            assert (signs[:, i] * signs[:, j] @ signs == 0).all()


@pytest.mark.parametrize("name", ["sensitivity", "horizons", "horizons_tuning"])
def test_every_cell_of_the_committed_studies_is_a_set_of_parameters(name):
    """Each in a folder of its own, on every ladder, so that no two cells share a record."""
    committed = study.load(PARAMS / f"{name}.yaml")
    for entry in committed.entries:
        folders = [cell.apply(entry.params, where=name).RUN_DIR for cell in cells.of(committed)]
        assert len(set(folders)) == len(folders) > 30


def test_a_cell_has_the_levels_that_its_letters_say():
    committed = study.load(PARAMS / "sensitivity.yaml")
    by_name = {cell.name: cell for cell in cells.of(committed)}
    params = committed.entries[0].params
    low = by_name["f FGHJ"].apply(params, where="x")
    assert (low.OPTIMIZER, low.LEARNING_RATE, low.ITERATIONS, low.KL_COEF) == ("adamw", 5e-5, 4, 0.1)
    high = by_name["f ABCDEFGHJ"].apply(params, where="x")
    assert (high.OPTIMIZER, high.METHOD, high.SCALE) == ("sgd", "shift", "none")
    assert pytest.approx(0.016) == high.LEARNING_RATE
    assert by_name["base"].apply(params, where="x").LEARNING_RATE == params.LEARNING_RATE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"CELLS": [{"NAME": "a"}, {"NAME": "a"}]}, "two cells named a"),
        ({"CELLS": [{"FACTOR": "a"}]}, "CELLS: expected mappings with a NAME"),
        ({"CELLS": {"NAME": "a"}}, "expected CELLS to be a list"),
        ({"FACTORS": [{"NAME": "a", "LOW": {}}]}, "FACTORS: expected mappings with NAME, LOW and HIGH"),
        (
            {"FACTORS": [{"NAME": "a", "LOW": {}, "HIGH": {}}], "GENERATORS": {"A": "B"}},
            "GENERATORS: expected letters of free factors, got A: B",
        ),
    ],
)
def test_a_study_file_with_wrong_cells_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        cells.of(study.load(small(tmp_path, **changes)))


def test_a_cell_with_an_unknown_setting_is_refused_by_name(tmp_path):
    loaded = study.load(small(tmp_path, CELLS=[{"NAME": "odd", "LERNING_RATE": 1.0}]))
    with pytest.raises(ValueError, match=r"cell odd: .*LERNING_RATE"):
        cells.of(loaded)[0].apply(loaded.entries[0].params, where="x")


def test_rungs_are_spread_over_the_ranks_of_their_rewards():
    assert spread([0.9, 0.1, 0.5, 0.2, 0.7], 3) == [0, 1, 2]
    assert spread([0.0, 0.0, 0.0], 3) == [0, 1, 2]
    assert spread([0.0, 0.01, 0.02, 0.03, 0.5, 1.0], 3) == [0, 2, 5]
    assert spread([0.0, 0.01, 0.02, 0.03, 0.5, 1.0], 3, by="rewards") == [0, 4, 5]
    with pytest.raises(ValueError, match="by: expected one of"):
        spread([0.0, 1.0], 2, by="steps")
    with pytest.raises(ValueError, match="count: expected 2 to 3 rungs, got 4"):
        spread([0.0, 0.1, 0.2], 4)


def test_a_study_of_cells_runs_publishes_and_is_not_run_twice(tmp_path):
    """All cells on the chosen rungs of all ladders; the cell base is measured; a second call finds everything."""
    path, out = small(tmp_path), tmp_path / "out"
    told = CliRunner().invoke(app, ["study", "-f", str(path), "--workers", "1", "--publish", str(out)])
    assert told.exit_code == 0, told.output
    gains = pd.read_parquet(out / "gains.parquet")
    assert len(gains) == 2 * 2 * 3 * 2  # ladders, cells, rungs, budgets
    assert set(gains.cell) == {"base", "rate 4"}
    assert np.allclose(gains.gain, gains.reward - gains.start, atol=1e-6)
    assert len(pd.read_parquet(out / "checkpoints.parquet")) == 2 * 3
    table = pd.read_parquet(out / "cells.parquet").set_index("cell")
    assert np.allclose(table.LEARNING_RATE, [2e-4, 8e-4])
    said = json.loads((out / "study.json").read_text())
    assert set(said["cells"]) == {"s1, base", "s2, base", "s1, rate 4", "s2, rate 4"}
    again = CliRunner().invoke(app, ["study", "-f", str(path), "--workers", "1"])
    assert "s2, rate 4: 0 jobs done, 3 found finished" in again.output
    loaded = study.load(path)
    chosen = jobs.ladder(cells.entries(loaded, loaded.entries)[0].params)
    assert len(chosen) == 3
