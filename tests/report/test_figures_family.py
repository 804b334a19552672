"""The figures of notebook 04c: what is drawn is what the table says, and labels keep apart."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from replicate.report.figures import nb04c

mpl.use("Agg")


def test_labels_keep_apart_and_in_order():
    heights = nb04c._apart([10.0, 1.0, 9.0, 100.0], gap=1.5)
    assert heights == pytest.approx([13.5, 1.0, 9.0, 100.0])


def test_the_family_is_a_row_an_estimator():
    table = pd.DataFrame(
        {"angle": [0.0, 11.0, 0.0], "noise": [8000.0, 5.5, 0.1]}, ["REINFORCE", "GRPO", "BPTT"]
    )
    left, right = nb04c.family(table).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["BPTT", "GRPO", "REINFORCE"]
    assert left.collections[0].get_offsets()[:, 0].tolist() == [0, 11, 0]
    assert [text.get_text() for text in right.texts] == ["0.1", "5.5", "8,000"]


def test_training_shows_every_seed_and_says_how_many_lie_outside():
    shares = np.r_[np.linspace(0.5, 1, 10), -3.0]
    table = pd.DataFrame({"task": "cart", "method": "GRPO", "share": shares})
    table = pd.concat([table, table.assign(task="pendulum")])
    ax = nb04c.training(table).axes[0]
    assert ax.lines[0].get_xdata() == pytest.approx(np.clip(shares, -0.5, None))
    assert [text.get_text() for text in ax.texts] == ["1 further left"]


def test_groups_and_horizon_draw_closed_forms_as_lines():
    N = [2, 4, 8, 16, 32]
    error = {"sampled": 1.0, "error": 0.1}
    variance = pd.DataFrame({"N": N, "excess": 1 / (np.array(N) - 1), **error})
    sizes = pd.DataFrame({"N": N, "total": [1.1, 1, 1.3, 2, 3.5], **error})
    left, right = nb04c.groups(variance, sizes).axes
    assert left.lines[1].get_ydata()[[0, -1]] == pytest.approx([2, 1 + 1 / 31])
    assert right.lines[0].get_ydata().tolist() == sizes["total"].tolist()
    table = pd.DataFrame(
        [
            (task, m, T, v * T, 1.0, 0.1, 0.61)
            for task in "ab"
            for m, v in (("RLOO", 3.0), ("BPTT", 1.0))
            for T in (1, 2, 4)
        ],
        columns=["task", "method", "T", "exact", "sampled", "error", "exponent"],
    )
    axes = nb04c.horizon(table).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b"]
    assert [text.get_text() for text in axes[0].texts] == ["RLOO  +0.6", "BPTT  +0.6"]
