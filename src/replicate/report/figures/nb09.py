"""The figure of notebook 09: what the checkpoints of a ladder can do.

Each function takes the table it draws (see :func:`replicate.runs.tables.per_checkpoint`) and returns the figure; the
caption, with the ladder's name, is the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import tokens_axis
from replicate.report.figures.style import BLACK, BLUE, GREY, PURPLE, SKY, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def abilities(frame: pd.DataFrame, *, labels: int, vocab: int) -> "Figure":
    """What each checkpoint does at the answer position: reward and masses on the left, entropy on the right."""
    figure, (left, right) = panels(1, 2, width=9.0, height=3.4)
    x, label = tokens_axis(frame)
    for column, name, colour in (
        ("label_mass", "mass on the labels", GREY),
        ("top", "share of prompts with\nthe label on top", SKY),
        ("reward", "$J$ = mean $\\pi(y\\,|\\,q)$", BLUE),
    ):
        left.plot(
            x, frame[column], color=colour, label=name, marker=".", lw=2.2 if column == "reward" else 1.4
        )
    left.axhline(1 / labels, color=BLACK, lw=0.8, ls=":")
    left.annotate(
        f"chance 1/{labels}", (x[-1], 1 / labels), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    left.set(xlabel=label, ylabel="probability", title="what the answer position says", ylim=(-0.03, 1.06))
    left.legend(loc="center right", fontsize=8)
    right.plot(x, frame.entropy, color=PURPLE, marker=".")
    for level, name in (
        (np.log(vocab), f"ln {vocab}: uniform over the vocabulary"),
        (np.log(labels), f"ln {labels}: uniform over the labels"),
    ):
        right.axhline(level, color=BLACK, lw=0.8, ls=":")
        right.annotate(name, (x[-1], level), (0, 3), textcoords="offset points", ha="right", fontsize=8)
    right.set(
        xlabel=label,
        ylabel="entropy (nats)",
        title="entropy at the answer position",
        ylim=(-0.1, np.log(vocab) * 1.1),
    )
    return figure
