"""TRL's trainers and ours leave a table of rewards that notebook 15 can read."""

import importlib
from pathlib import Path

import pandas as pd
import pytest

from replicate.runs import horizons_tables

pytest.importorskip("trl")


@pytest.fixture
def trl_curves(monkeypatch):
    """The benchmark as a module; what it sets in the environment goes with the test."""
    for name, value in (("HF_HUB_OFFLINE", "1"), ("OMP_WAIT_POLICY", "passive")):
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("trl_curves")


def test_both_sides_leave_a_reward_for_every_update(trl_curves, tmp_path, capsys):
    """Between 0 and 1 in steps of 1/256, what 64 completions of four tokens can be paid."""
    trl_curves.main(["--quick", "--out", str(tmp_path / "trl.parquet")])
    table = pd.read_parquet(tmp_path / "trl.parquet")
    assert table.groupby(["trainer", "whose"]).size().unstack().eq(4).all(axis=None)
    assert table.reward.between(0, 1).all()
    assert (256 * table.reward % 1).abs().max() < 1e-4
    areas = horizons_tables.areas(table)
    assert [len(areas.TRL["GRPO"]), len(areas.ours["RLOO"])] == [2, 2]
    assert "TRL" in capsys.readouterr().out
