"""What notebook 02 draws and prints."""

import numpy as np
import pandas as pd
import pytest
import torch

from replicate.report.figures import nb02


def test_numbers_of_a_table_stand_between_backquotes():
    table = pd.DataFrame({"route": ["a", "b|c"], "t": [0, 12], "error": [0.12345, 2.0]})
    said = nb02.written(table, "{:.2f}").splitlines()
    assert said[:2] == ["| route | t | error |", "|---|--:|--:|"]
    assert said[2:] == ["| a | `0` | `0.12` |", r"| b\|c | `12` | `2.00` |"]


def test_every_pair_of_routes_is_compared_once():
    x = torch.ones(2, dtype=torch.float64)
    table = nb02.pairs({"one": x, "same": x, "half": x / 2})
    assert list(zip(table["route"], table["other"], strict=True)) == [
        ("one", "same"),
        ("one", "half"),
        ("same", "half"),
    ]
    assert table["relative error"].tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("heights", [[0.0, 0.1, 0.15], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
def test_labels_are_moved_apart_and_keep_their_order(heights):
    moved = nb02._spread(np.array(heights), 0.2)
    assert (np.diff(moved) >= 0.2 - 1e-12).all()
    if np.diff(heights).min() >= 0.2:
        assert moved.tolist() == heights


def test_every_slip_has_its_bar_from_zero():
    table = pd.DataFrame(
        {
            "equation": ["(6)", "(6)", "(7)", "(7)"],
            "slip": ["none", "sign", "none", "step"],
            "relative error": [1e-12, 1.5, 1e-12, 0.2],
        }
    )
    axes = nb02.planted_errors(table).axes
    widths = [bar.get_width() for ax in axes for bar in ax.patches]
    assert widths == pytest.approx([1e-10, 150, 1e-10, 20])
    assert {bar.get_x() for ax in axes for bar in ax.patches} == {0}
    assert [ax.texts[-1].get_text() for ax in axes] == ["150 %", "20 %"]
