"""The figures of notebook 10: what is drawn is what the tables say."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from replicate.report.figures import nb10

mpl.use("Agg")

STEPS = [{"step": s, "tokens": 1000 * s} for s in (0, 10, 20)]
SIDES = ("exact", "pairs", "spread", "paper")


def line(ax, label):
    (found,) = [x for x in ax.lines if x.get_label() == label]
    return found.get_ydata().tolist()


def test_entropies_draws_the_mean_and_the_source_of_every_kind():
    rows = [
        at | {"document": d, "kind": k, "H": 5.0 - at["step"] / 10, "S": 1.5, "low": 0.5, "high": 5.5}
        for at, (d, k) in itertools.product(
            STEPS, [("prompts", "label"), ("records", "key"), ("records", "mark")]
        )
    ]
    figure = nb10.entropies(pd.DataFrame(rows))
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == [
        "label documents",
        "records",
    ]
    assert line(figure.axes[1], "key") == [5.0, 4.0, 3.0]
    assert [x.get_ydata().tolist() for x in figure.axes[0].lines] == [[5.0, 4.0, 3.0], [1.5] * 3]


def sides(**place):
    return {"exact": 0.2, "pairs": 2.0, "spread": 6.0, "paper": 40.0, "coin": 2.0} | place


@pytest.mark.parametrize(
    "kinds", [("mark",), ("mark", "key", "label"), ("mark", "key", "label", "the answer")]
)
def test_token_paths_are_medians_in_units_of_the_coin(kinds):
    rows = [at | sides(kind=k, coin=c) for at, k, c in itertools.product(STEPS, kinds, (1.0, 2.0, 400.0))]
    figure = nb10.token_paths(pd.DataFrame(rows))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == len(kinds)
    assert line(shown[0], "exact left side") == pytest.approx([0.1] * 3)
    assert line(shown[-1], "paper's form, $C\\,H/\\log|\\mathrm{vocabulary}|$") == pytest.approx([20.0] * 3)
    assert all(ax.get_xlabel() for ax in shown[-(-len(kinds) // 2) :])


def test_positions_carry_the_names_of_their_tokens():
    table = pd.DataFrame([sides(position=t, exact=t) for t in (1, 2, 3)])
    figure = nb10.by_position(table, ["label", "is", "(label)", ";"])
    (ax,) = figure.axes
    assert [x.get_text() for x in ax.get_xticklabels()] == ["is", "(label)", ";"]
    assert line(ax, "exact left side") == [0.5, 1.0, 1.5]


def test_costates_are_relative_to_the_signal_and_what_grpo_sends_stands_in_the_first_panel():
    rows = [
        at | {"k": k, "error": e, "signal": 2.0, "entropy": 8.0, "factors": 20.0}
        for at, k, e in itertools.product(STEPS, (1, 2, 3), (0.1, 0.2, 9.0))
    ]
    sent = pd.DataFrame([at | {"sent": 1.0, "signal": 4.0} for at in STEPS])
    figure = nb10.costates(pd.DataFrame(rows), sent)
    one, two, _ = figure.axes
    assert line(one, "error of the cut costate") == pytest.approx([0.1] * 3)
    assert line(one, "distance of what GRPO sends") == [0.25] * 3
    assert "distance of what GRPO sends" not in [x.get_label() for x in two.lines]
    band = two.collections[-1].get_paths()[0].vertices[:, 1]
    assert (np.min(band), np.max(band)) == pytest.approx((0.05, 4.5))
