"""Notebook 14's figures show the table they are given: means with intervals over ladders, cells where they belong."""

import matplotlib as mpl
import pandas as pd
import pytest

from replicate.report.figures import nb14
from replicate.statistics.factorial import MIXED, OVER

mpl.use("Agg")


def test_a_curve_has_a_line_a_ladder_and_their_mean_and_spare_panels_are_off():
    places = [(f, i, j) for f in "pq" for i in range(3) for j in range(2)]
    rows = [(f, "xyz"[i], "ab"[j], i + j) for f, i, j in places]
    table = pd.DataFrame(rows, columns=["factor", "level", "ladder", "gain"])
    axes = nb14.curves(table, "gain", ylabel="gain").axes
    assert [ax.get_title("left") or ax.get_title() for ax in axes[:2]] == ["p", "q"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["x", "y", "z"]
    lines = [list(line.get_ydata()) for line in axes[0].lines]
    assert lines[:2] == [[0, 1, 2], [1, 2, 3]]
    assert [0.5, 1.5, 2.5] in lines
    assert [ax.axison for ax in axes] == [True, True, False, False]


def test_effects_are_filled_only_where_they_stand_the_correction():
    rows = [
        ("gain", reading, term, 0.1, 0.0, 0.2, p)
        for reading in (MIXED, OVER)
        for term, p in (("rate", 0.01), ("group", 0.2))
    ]
    table = pd.DataFrame(rows, columns=["response", "reading", "term", "mean", "low", "high", "holm"])
    (ax,) = nb14.effects(table, {"gain": "effect"}).axes
    dots = [c for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    faces = [tuple(face) for markers in dots for face in markers.get_facecolors()]
    assert [face == (1, 1, 1, 1) for face in faces] == [False, True, False, True]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rate", "group"]


def test_orderings_stand_in_the_rows_and_columns_that_are_named_and_dots_where_zero_is_inside():
    table = pd.DataFrame(
        [
            ("c1", "V", 0.5, 0.1, 0.9),
            ("c1", "law", 0.2, -0.1, 0.5),
            ("c2", "V", -0.5, -0.9, -0.1),
            ("c2", "law", 0.9, 0.8, 1.0),
        ],
        columns=["cell", "score", "mean", "low", "high"],
    )
    ax = nb14.orderings(table, {"all": ["c2", "c1"]}, ["law", "V"]).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.9, -0.5], [0.2, 0.5]]
    assert ax.lines[0].get_xydata().tolist() == [[0, 1]]


def test_budgets_are_drawn_at_their_place_and_rates_stretch_the_axis():
    ladders, budgets = ["a", "b"], [5, 10]
    shares = pd.DataFrame(
        [("0 to 1", n, ladder, 0.1 * n + j) for n in budgets for j, ladder in enumerate(ladders)],
        columns=["band", "budget", "ladder", "share"],
    )
    orders = shares.rename(columns={"share": "spearman", "band": "score"}).assign(score="law")
    by_rate = pd.concat([orders.assign(rate=rate) for rate in (0.25, 4.0)])
    left, _, right = nb14.budgets(shares, orders, by_rate).axes
    assert left.lines[0].get_xydata().tolist() == [[5, 1.0], [10, 1.5]]
    # The second curve stands beside the first, not before it.
    drawn = sorted({x for line in right.lines[:-1] for x in line.get_xdata() if x > 1})
    assert drawn == pytest.approx([1.25, 2.5, 20 * 1.07, 40 * 1.07])


def test_alarms_are_written_in_per_cent_and_none_at_all_is_said():
    shares = pd.DataFrame({"no signal": [0.25, 0.0, 0.0], "far": [0.0, 0.0, 0.5]}, index=["p", "q", "r"])
    ax = nb14.alarms(shares).axes[0]
    assert [text.get_text() for text in ax.texts] == ["25", "50"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["p", "r"]
    assert nb14.alarms(0 * shares).axes[0].texts[0].get_text() == "no alarm in any cell"
