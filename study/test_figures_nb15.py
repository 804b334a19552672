"""Notebook 15's figures show the tables they are given: each number at its place, intervals over ladders around it."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import horizons_records as made
from replicate.report.figures import nb15
from replicate.runs import horizons_tables as horizons

mpl.use("Agg")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    made.write(folder)
    return horizons.load(folder)


def drawn(ax, label):
    """The line of that name, as points."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata()


def test_bias_stands_beside_its_error():
    table = pd.DataFrame(
        [("T = 1", 0.1, 1.02, 0.04), ("T = 1", 1.0, 0.7, 0.01)],
        columns=["task", "temperature", "along", "error"],
    )
    left, right = nb15.bias(table).axes
    assert left.lines[0].get_ydata().tolist() == [1.02, 0.7]
    assert right.lines[0].get_ydata() == pytest.approx([0.02, 0.3])
    assert right.lines[1].get_ydata() == pytest.approx([0.04, 0.01])
    assert left.get_legend().get_texts()[0].get_text() == "T = 1"


def test_the_thick_line_of_the_noise_is_the_geometric_mean(tables):
    ratios = horizons.noise(tables)
    ax = nb15.noise(ratios, horizons.DENSITIES).axes[0]
    own = ratios[(ratios.density == "all") & (ratios.credit == "critic")]
    expected = np.exp(np.log(own.ratio).groupby(own["T"]).mean())
    assert drawn(ax, "exact critic") == pytest.approx(np.column_stack([expected.index, expected]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact critic", "whole reward"]


def test_positions_are_counted_from_one(tables):
    found = [horizons.noise(tables, block) for block in ("token", "label")]
    axes = nb15.positions(*found, horizons.DENSITIES, horizon=4).axes
    line = drawn(axes[0], "whole reward")
    own = found[0]
    own = own[(own["T"] == 4) & (own.density == "all") & (own.credit == "outcome")]
    assert line[:, 0].tolist() == [1, 2, 3, 4]
    assert line[:, 1] == pytest.approx(own.groupby("index").ratio.mean().to_numpy())


def test_orders_have_a_mark_for_each_score_and_horizon(tables):
    table = horizons.orders(horizons.scored(tables))
    late, dense = nb15.orders(table, horizons.DENSITIES).axes
    assert len(late.containers) == len(dense.containers) == 3
    assert [len(marks[0].get_xdata()) for marks in late.containers] == [5, 5, 5]
    assert [len(marks[0].get_xdata()) for marks in dense.containers] == [4, 4, 4]
    own = table[(table.score == horizons.SCORE_AT_T) & (table.density == "all")].groupby("T").spearman.mean()
    assert late.containers[0][0].get_ydata() == pytest.approx(own.to_numpy())


def test_curves_have_panels_of_horizons_and_densities_and_an_axis_of_completions(tables):
    found = horizons.curves(tables)
    figure = nb15.curves(found, horizons.METHODS, horizons.DENSITIES)
    axes = figure.axes
    assert [ax.axison for ax in axes] == [True] * 5 + [False] + [True] * 4
    line = drawn(axes[4], "PPO, learned critic")
    own = found[(found.method == "ppo") & (found["T"] == 16) & (found.density == "all")]
    assert line[:, 1] == pytest.approx(own.groupby("budget").gained.mean().to_numpy())
    (above,) = axes[0].child_axes
    figure.canvas.draw()
    assert above.get_xlim() == pytest.approx(tuple(64 * x for x in axes[0].get_xlim()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(horizons.METHODS.values())


def test_the_critics_margin_stands_against_horizon_and_group(tables):
    table = horizons.margins(horizons.by_method(tables))
    left, right = nb15.critic(table, usual=8, titles=horizons.DENSITIES).axes
    own = table[(table.density == "all") & (table.group == 8)].groupby("T").margin.mean()
    assert left.containers[0][0].get_ydata() == pytest.approx(own.to_numpy())
    assert [label.get_text() for label in right.get_xticklabels()] == ["2", "4", "8", "16"]
    sized = table[(table.density == "all") & (table["T"] == 8)].groupby("group").margin.mean()
    assert right.containers[0][0].get_ydata() == pytest.approx(sized.to_numpy())
    assert right.get_xlabel().endswith("$T$ = 8")


def test_trls_curve_is_the_mean_over_seeds():
    table = made.trl(np.random.default_rng(0))
    axes = nb15.trl(table).axes
    assert [ax.get_title(loc="left") + ax.get_title() for ax in axes] == ["GRPO", "RLOO"]
    own = table[(table.trainer == "GRPO") & (table.whose == "ours")].groupby("update").reward.mean()
    assert drawn(axes[0], "ours")[:, 1] == pytest.approx(own.to_numpy())
