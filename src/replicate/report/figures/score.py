"""The figure of ``replicate score``: reward before RL and where it would end, and the law's score, rung by rung."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import tokens_axis, typeset
from replicate.report.figures.style import BLUE, GREY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def ladder(rungs: pd.DataFrame, *, budget: int) -> "Figure":
    """Left: J_0 and the predicted end after ``budget`` updates; right: the score. Bars are 95% over prompts.

    Rungs without a spread of rewards have no score, and their J_0 is hollow.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.6)
    x, said = tokens_axis(rungs)
    if len(set(x)) < len(x):  # stages that each count from their own beginning
        x, said = np.arange(len(rungs)), "rung"
    _line(left, x, rungs, "J0", GREY, "$J_0$, before RL")
    _line(left, x, rungs, "end", VERMILION, f"predicted after {budget} updates")
    left.plot(x[rungs.note != ""], rungs.J0[rungs.note != ""], "o", mfc="white", mec=GREY, zorder=3)
    left.set(xlabel=said, ylabel="expected reward")
    left.legend(loc="best")
    _line(right, x, rungs, "score", BLUE, "")
    right.axhline(0, color=GREY, lw=0.8)
    right.set(xlabel=said, ylabel=typeset("law"))
    return figure


def _line(ax: "Axes", x: np.ndarray, rungs: pd.DataFrame, name: str, colour: str, label: str) -> None:
    below, above = rungs[name] - rungs[f"{name}_low"], rungs[f"{name}_high"] - rungs[name]
    ax.errorbar(x, rungs[name], [below, above], fmt="o-", ms=4, lw=1.2, capsize=2, color=colour, label=label)
