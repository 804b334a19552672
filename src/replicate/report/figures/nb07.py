"""The figures of notebook 07: ranks and their bounds, effective rank against breadth, size against attention weight.

Each function takes the table it draws (see :mod:`replicate.lm.pathways`) and returns the figure; the caption, with the
ladder's name, is the notebook's.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAD_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)


def rank(grid: pd.DataFrame, *, hidden: int) -> "Figure":
    """Numerical ranks of one sublayer (left) and of the whole model (right) against the bounds of Prop. 3.

    ``grid`` has one row a model: layers, heads, d_head, rank, total. ``hidden`` is their common width d.
    """
    figure, (left, right) = panels(1, 2, width=8.6, height=3.5, sharey=True)
    width = grid["heads"] * grid["d_head"]
    _bound_line(left, 1.55 * width.max(), hidden)
    left.plot(width, grid["rank"], "o", color=BLUE)
    left.axvline(hidden, color=VERMILION, lw=1, ls=":")
    left.annotate("OLMo-2:\n" r"heads $\times\,d_{\rm head}=d$", (hidden + 1, 2), color=VERMILION, fontsize=9)
    left.set(xlabel=r"heads $\times\ d_{\rm head}$", ylabel="numerical rank, $j<t$")
    left.set_title(r"one sublayer: $\partial a_t/\partial x_j$")
    _bound_line(right, 1.06 * (width * grid["layers"]).max(), hidden)
    # Nested marks, since models of one, two and three layers fall on the same points.
    for layers, colour, marker, size in ((1, BLUE, "o", 9.5), (2, GREEN, "s", 6.5), (3, ORANGE, "^", 3.8)):
        mine = grid[grid["layers"] == layers]
        right.plot(
            layers * mine["heads"] * mine["d_head"],
            mine["total"],
            marker,
            color=colour,
            ms=size,
            mfc="none" if layers < 3 else colour,
            mew=1.3,
            label=f"{layers} layer{'s' * (layers > 1)}",
        )
    right.legend(loc="lower right")
    right.set(xlabel=r"layers $\times$ heads $\times\ d_{\rm head}$", ylim=(0, 1.25 * hidden))
    right.set_title(r"whole model: $\partial h_t^L/\partial h_j^0$")
    return figure


def spectrum(frame: pd.DataFrame, *, marks: Mapping[int, str]) -> "Figure":
    """Singular values of one whole-model Jacobian, largest first, for several epsilons of the norms.

    ``frame`` has columns index (from 1), singular value (relative to the largest) and epsilon; ``marks`` maps two
    counts of singular values to the words written at them.
    """
    figure, ax = panels(1, 1, width=7.2, height=3.6)
    for (epsilon, mine), (colour, marker, offset) in zip(
        frame.groupby("epsilon", sort=False),
        ((GREEN, "o", (16, -3)), (BLUE, "s", (16, -3)), (VERMILION, "^", (-14, -20))),
        strict=False,
    ):
        values = mine["singular value"].clip(lower=1e-19)  # what is smaller sits on the axis
        ax.semilogy(mine["index"], values, marker + "-", color=colour, lw=0.8, ms=4.5)
        last = mine[mine["singular value"] > 1e-13].iloc[-1]  # the last one above round-off
        ax.annotate(
            rf"$\epsilon$ = {_scientific(epsilon)}",
            (last["index"], last["singular value"]),
            offset,
            textcoords="offset points",
            color=colour,
            ha="left" if offset[0] > 0 else "right",
        )
    for (count, words), side in zip(sorted(marks.items()), ("right", "left"), strict=True):
        ax.axvline(count + 0.5, color=GREY, lw=1, ls=":")
        shift = -0.2 if side == "right" else 0.2
        ax.annotate(words, (count + 0.5 + shift, 300), color="0.35", fontsize=9, va="top", ha=side)
    ax.axhspan(1e-19, 1e-15, color="0.93", lw=0, zorder=0)
    ax.annotate("round-off", (frame["index"].max(), 5e-16), color="0.35", fontsize=9, va="top", ha="right")
    ax.set(xlabel="number of the singular value", ylabel="singular value / largest", ylim=(1e-19, 1e3))
    ax.set_title("where the spectrum of a narrow model ends")
    return figure


def effective_rank(
    ranks: pd.DataFrame, titles: Mapping[str, str], notes: Mapping[str, str], *, d_head: int
) -> "Figure":
    """Participation ratio of do_t/dx_{<t} against the breadth of attention: a row of panels a block, a column a rung.

    One point a head, position and prompt, one colour a head; the dashed line of its colour is the effective rank of
    that head's value path. ``titles`` names the values of ``stage``, ``notes`` adds a line below each title.
    """
    layers = sorted(ranks["layer"].unique())
    figure, axes = panels(
        len(layers), len(titles), width=10.2, height=2.7 * len(layers) + 0.6, sharex=True, sharey=True
    )
    axes = np.reshape(axes, (len(layers), -1))
    for (layer, stage), ax in zip(((k, s) for k in layers for s in titles), axes.flat, strict=True):
        mine = ranks[(ranks["stage"] == stage) & (ranks["layer"] == layer)]
        for (head, points), colour in zip(mine.groupby("head"), _HEAD_COLOURS, strict=False):
            ax.axhline(points["value only"].median(), color=colour, lw=1, ls="--", alpha=0.8)
            ax.plot(points["breadth"], points["participation"], "o", ms=2.8, mew=0, alpha=0.55, color=colour)
            if ax is axes[0, 0]:
                ax.annotate(
                    f"head {head + 1}",
                    (0.04 + 0.24 * head, 0.04),
                    xycoords="axes fraction",
                    color=colour,
                    fontsize=9,
                )
        ax.set(ylim=(0, d_head))
    axes[0, -1].annotate(
        "dashed: value path alone", (0.97, 0.92), xycoords="axes fraction", fontsize=9, ha="right"
    )
    for ax, stage in zip(axes[0], titles, strict=True):
        ax.set_title(f"{titles[stage]}\n{notes[stage]}", fontsize=9.5)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.set_ylabel(f"block {layer}\nparticipation ratio (of {d_head})")
    for ax in axes[-1]:
        ax.set_xlabel(r"breadth of $\alpha_t$ (positions)")
    return figure


def magnitude(sizes: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Size of the two terms of do_t/dx_j per unit of attention weight: a row of panels a block, a column a rung.

    Blue lines are the value term's factor of each head, the hexagons count (head, pair)s of the score term.
    """
    from matplotlib.colors import LogNorm

    layers = sorted(sizes["layer"].unique())
    figure, axes = panels(
        len(layers), len(titles), width=10.2, height=2.7 * len(layers) + 0.4, sharex=True, sharey=True
    )
    axes = np.reshape(axes, (len(layers), -1))
    per_weight = sizes["score"] / sizes["alpha"]
    low, high = per_weight.quantile(0.005), 1.1 * per_weight.max()
    for (layer, stage), ax in zip(((k, s) for k in layers for s in titles), axes.flat, strict=True):
        here = (sizes["stage"] == stage) & (sizes["layer"] == layer)
        mine = sizes[here]
        cells = ax.hexbin(
            mine["alpha"],
            per_weight[here].clip(lower=low),  # what is smaller sits on the axis
            yscale="log",
            gridsize=(28, 14),
            extent=(0, 1, np.log10(low), np.log10(high)),
            cmap="Oranges",
            norm=LogNorm(1, 300),
            mincnt=1,
            linewidths=0.2,
        )
        for factor in mine.groupby("head")["value factor"].median():
            ax.axhline(factor, color=BLUE, lw=1.2)
        ax.set(xlim=(-0.03, 1.03), ylim=(low, high))
    axes[0, 0].annotate(
        "value term: one line a head", (0.25, 0.9), xycoords="axes fraction", color=BLUE, fontsize=9
    )
    axes[0, 0].annotate("score term", (0.25, 0.81), xycoords="axes fraction", color=VERMILION, fontsize=9)
    for ax, title in zip(axes[0], titles.values(), strict=True):
        ax.set_title(title)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.set_ylabel(f"block {layer}\n" r"norm of term / $\alpha_{tj}$")
    for ax in axes[-1]:
        ax.set_xlabel(r"attention weight $\alpha_{tj}$")
    figure.colorbar(cells, ax=axes, label="score terms in a cell (head, pair $j<t$)", shrink=0.8)
    return figure


def _bound_line(ax: "Axes", end: float, hidden: int) -> None:
    x = np.array([0, hidden, max(end, hidden + 1)])
    ax.plot(x, np.minimum(x, hidden), color=GREY, zorder=0)
    ax.annotate(
        f"bound, cut off at $d$ = {hidden}", (x[-1], 1.06 * hidden), color="0.4", fontsize=9, ha="right"
    )
    ax.set_xlim(0, x[-1])


def _scientific(value: float) -> str:
    if value in (0, 1):
        return f"{value:g}"
    return f"$10^{{{round(np.log10(value))}}}$"
