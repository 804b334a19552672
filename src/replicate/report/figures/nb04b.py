"""The figures of notebook 04b: what the group's std does to prompts, the clip to a gradient, 1/|o| to lengths.

Each function takes the table it draws and returns the figure; the caption, which names the task, is the notebook's.
Whiskers are two standard errors.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.nb04 import points
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def group_std(exact: pd.DataFrame, measured: pd.DataFrame) -> "Figure":
    """Weights of prompts after the division by the group's std: exact for binary rewards, measured for returns.

    ``exact`` has the columns ``p, limit`` and one ``N = k`` a group size; ``measured`` has ``1 / std, weight`` and
    ``standard error``.
    """
    figure, (left, right) = panels(1, 2, width=9.8, height=3.9, widths=(1.25, 1))
    sizes = [name for name in exact if name.startswith("N = ")]
    first = exact.iloc[0]
    for name, colour in zip(sizes, (GREY, ORANGE, GREEN, BLUE), strict=True):
        left.plot(exact["p"], exact[name], color=colour, lw=2)
        place = {"textcoords": "offset points", "va": "center", "ha": "right"}
        left.annotate(f"${name}$", (first["p"], first[name]), (-5, 0), color=colour, **place)
    left.plot(exact["p"], exact["limit"], color=BLACK, lw=1.2, ls="--")
    left.annotate(r"large group: $1/\sqrt{p(1-p)}$", (0.004, 18), (4, 6), textcoords="offset points")
    left.set(
        title="binary rewards: a small group cannot weigh rare successes up",
        xlabel="success probability $p$ of the prompt",
        ylabel=r"weight on $\nabla p$",
        xscale="log",
        yscale="log",
        xlim=(2.5e-5, 0.6),
        ylim=(0.5, 60),
    )
    left.set_xticks([1e-4, 1e-3, 1e-2, 0.1, 0.5], ["0.0001", "0.001", "0.01", "0.1", "0.5"])
    left.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    left.minorticks_off()
    reach = np.array([0, 1.1 * measured["1 / std"].max()])
    right.plot(reach, reach, color=BLACK, lw=1, ls="--")
    points(right, measured["1 / std"], measured, "weight", VERMILION)
    place = {"textcoords": "offset points", "ha": "right"}
    right.annotate("weight = 1 / std", (0.62 * reach[1], 0.62 * reach[1]), (-8, 6), **place)
    for end, text, offset in (("idxmin", "far from the target", (10, -12)), ("idxmax", "near it", (10, -36))):
        row = measured.loc[getattr(measured["1 / std"], end)()]
        spot = (row["1 / std"], row["weight"])
        ha = "left" if end == "idxmin" else "right"
        right.annotate(text, spot, offset, textcoords="offset points", color=VERMILION, ha=ha)
    right.set(
        title="returns of the cart, groups of 64",
        xlabel="1 / std of the prompt's returns",
        ylabel=r"measured weight on $\nabla J$ (2 s.e.)",
        xlim=(0, reach[1]),
        ylim=(0, reach[1]),
    )
    return figure


def clip(table: pd.DataFrame) -> "Figure":
    """Mean gradient of the surrogate, free and clipped, and the true one, against the distance from theta_old.

    ``table`` has the columns ``shift, truth, free, free s.e., clipped, clipped s.e.``.
    """
    figure, ax = panels(1, 1, width=7.2, height=3.7)
    ax.plot(table["shift"], table["truth"], color=BLACK, lw=1)
    for kind, colour, marker in (("free", BLUE, "o"), ("clipped", VERMILION, "s")):
        points(ax, table["shift"], table, kind, colour, error=f"{kind} s.e.", marker=marker)
    last = table.iloc[-1]
    for text, height, offset, colour in (
        ("surrogate without clip", last["free"], 36, BLUE),
        (r"line: true $\nabla J(\theta)$", last["truth"], -26, BLACK),
        ("surrogate with clip", last["clipped"], 28, VERMILION),
    ):
        place = {"textcoords": "offset points", "ha": "right"}
        ax.annotate(text, (last["shift"], height), (0, offset), color=colour, **place)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(
        title=r"One step of the cart: the surrogate's gradient away from $\theta_{old}$",
        xlabel=r"shift of the mean action from $\theta_{old}$ (noise scales)",
        ylabel="mean gradient along the step (2 s.e.)",
    )
    return figure


def lengths(table: pd.DataFrame) -> "Figure":
    """Expected pushes on the two stop logits, a row a convention of length.

    ``table`` has the columns ``convention, right, wrong``, the pushes in units of that on the answer.
    """
    figure, ax = panels(1, 1, width=7.6, height=2.7)
    y = -np.arange(len(table))
    for column, colour, marker, text in (
        ("wrong", VERMILION, "s", "stop after a wrong answer"),
        ("right", BLUE, "o", "stop after a right answer"),
    ):
        for height, x in zip(y, table[column], strict=True):
            ax.plot([0, x], [height, height], color=colour, lw=2, alpha=0.5)
        ax.plot(table[column], y, ls="none", marker=marker, color=colour, ms=8)
        place = {"textcoords": "offset points", "ha": "center"}
        ax.annotate(text, (table[column].iloc[0], 0), (0, 12), color=colour, **place)
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    reach = 1.5 * table[["right", "wrong"]].abs().to_numpy().max()
    ax.annotate("answers grow longer", (0.02, 0.04), xycoords="axes fraction", color="0.4")
    ax.annotate("answers grow shorter", (0.98, 0.04), xycoords="axes fraction", color="0.4", ha="right")
    ax.set(
        xlabel="expected push on the logit, in units of that on the right answer",
        yticks=y,
        yticklabels=table["convention"],
        xlim=(-reach, reach),
        ylim=(y.min() - 0.9, 0.9),
    )
    ax.grid(axis="y", visible=False)
    return figure
