"""The figures of notebook 07: ranks and their bounds, what breadth does, size against attention weight.

Each function takes the table it draws (see :mod:`replicate.lm.pathways`) and returns the figure; the caption, with the
ladder's name, is the notebook's.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rank(grid: pd.DataFrame, *, hidden: int) -> "Figure":
    """Numerical ranks of one sublayer (left) and of the whole model (right) against the bounds of Prop. 3.

    ``grid`` has one row a model: layers, heads, d_head, rank, total. ``hidden`` is their common width d.
    """
    figure, (left, right) = panels(1, 2, width=8.6, height=3.5, sharey=True)
    width = grid["heads"] * grid["d_head"]
    _bound_line(left, 1.55 * width.max(), hidden)
    left.plot(width, grid["rank"], "o", color=BLUE)
    left.axvline(hidden, color=VERMILION, lw=1, ls=":")
    left.annotate(
        "OLMo-2:\n" r"heads $\times\,d_{\rm head}=d_{\rm model}$",
        (hidden + 1, 2),
        color=VERMILION,
        fontsize=9,
    )
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
    right.set_title(r"whole model: $\partial h_t^{(m)}/\partial h_j^{(0)}$")
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


_RUNG_COLOURS = {"fresh": GREY, "before": BLUE, "climbing": ORANGE, "after": VERMILION}


def effective_rank(elasticities: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Elasticities in breadth with 3 standard errors: reach and effective rank, of whole layers and the whole model.

    ``elasticities`` has the columns ``stage, level, of, mean, se``; ``titles`` names the stages.
    """
    figure, axes = panels(1, 2, width=9.4, height=3.3, sharey=True, sharex=True)
    said = {"reach": "positions that credit reaches", "participation": "directions that carry it"}
    for ax, (measure, words) in zip(axes, said.items(), strict=True):
        ax.axvline(0, color="0.3", lw=1)
        ax.axvline(1, color=GREY, lw=0.8, ls=":")
        for i, level in enumerate(("model", "layer")):
            for k, stage in enumerate(titles):
                chosen = (elasticities["stage"] == stage) & (elasticities["level"] == level)
                for row in elasticities[chosen & (elasticities["of"] == measure)].itertuples():
                    y, colour = i + 0.22 * (1 - k), _RUNG_COLOURS[stage]
                    ax.errorbar(row.mean, y, xerr=3 * row.se, fmt="o", color=colour, capsize=2, ms=6)
                    if ax is axes[1] and level == "layer":
                        ax.annotate(
                            titles[stage],
                            (1.03, y),
                            xycoords=("axes fraction", "data"),
                            color=colour,
                            va="center",
                        )
        ax.set(title=words, xlabel="elasticity in breadth (1: in proportion)", ylim=(-0.6, 1.6))
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks([0, 1], ["whole\nmodel", "whole\nlayers"])
    return figure


def magnitude(sizes: pd.DataFrame, muted: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Size against attention weight: of single heads (left, one rung), and through all layers as a position is muted.

    ``sizes`` has the columns ``alpha, full, constant`` of one rung; ``muted`` has ``stage, other, bias, weight, size``,
    with ``size`` relative to that without muting, ``other`` saying that another position was muted.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.8)
    shown = sizes[sizes["alpha"] > 1e-8]
    left.hexbin(
        shown["alpha"],
        shown["full"] / shown["constant"],
        xscale="log",
        yscale="log",
        gridsize=38,
        cmap="Blues",
        bins="log",
        mincnt=1,
        linewidths=0.2,
    )
    ends = np.array([shown["alpha"].min(), 1.0])
    left.plot(ends, ends, color=VERMILION, lw=2)
    left.annotate(
        "bound: weight $\\times$ constant",
        (ends[0] * 3, ends[0] * 12),
        color=VERMILION,
        rotation=37,
        va="bottom",
    )
    left.set(xlabel=r"attention weight $\alpha_{tj}$", ylabel="size of a head's Jacobian / constant")
    left.set_title("one head: follows the weight, loosely")
    for stage in titles:
        for other in (False, True):
            rows = muted[(muted["stage"] == stage) & (muted["other"] == other)]
            rows = rows.groupby("bias")[["weight", "size"]].median()
            style = {"ls": ":", "marker": "s", "mfc": "none"} if other else {"ls": "-", "marker": "o"}
            right.plot(rows["weight"], rows["size"], color=_RUNG_COLOURS[stage], ms=4.5, **style)
    for k, (stage, title) in enumerate(titles.items()):
        right.annotate(
            title, (0.98, 0.30 - 0.085 * k), xycoords="axes fraction", color=_RUNG_COLOURS[stage], ha="right"
        )
    corner = {"xycoords": "axes fraction", "color": "0.3", "va": "top"}
    right.annotate("another position muted", (0.04, 0.91), **corner)
    right.annotate("the position\nitself muted", (0.04, 0.62), **corner)
    right.set(xscale="log", yscale="log", xlabel="mean attention weight on the muted position")
    right.set_ylabel("size through all layers / unmuted")
    right.set_title("all layers: proportional to the weights on it")
    return figure


def compensation(credit: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Relative error of the cut costate along the breadth of attention: median over prompts with quartiles, by rung.

    ``credit`` has the columns ``stage, temperature, breadth, error``; every temperature is a point.
    """
    figure, ax = panels(1, 1, width=7.6, height=4.0)
    for stage, title in titles.items():
        rows = credit[credit["stage"] == stage].groupby("temperature")[["breadth", "error"]]
        middle, low, high = rows.median(), rows.quantile(0.25)["error"], rows.quantile(0.75)["error"]
        colour = _RUNG_COLOURS[stage]
        ax.fill_between(middle["breadth"], low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(middle["breadth"], middle["error"], "o-", color=colour, lw=2)
        own = middle.loc[1.0]
        ax.plot(own["breadth"], own["error"], "o", ms=10, mfc="none", mec=colour, mew=1.5)
        end, offset = middle.iloc[-1], (8, 0)
        if stage == "fresh":
            end, offset = middle.iloc[0], (0, 9)
        at = (end["breadth"], end["error"])
        ax.annotate(title, at, offset, textcoords="offset points", color=colour, va="center")
    ax.set(
        yscale="log", xlabel="breadth of attention (positions)", ylabel="relative error of the cut costate"
    )
    ax.set_xlim(None, credit["breadth"].max() * 1.32)
    ax.set_title("Fresh weights: broader is better. Trained: no such rule. (Ring: as it is)")
    return figure


def _bound_line(ax: "Axes", end: float, hidden: int) -> None:
    x = np.array([0, hidden, max(end, hidden + 1)])
    ax.plot(x, np.minimum(x, hidden), color=GREY, zorder=0)
    ax.annotate(
        f"bound, cut off at $d_{{\\rm model}}$ = {hidden}",
        (x[-1], 1.06 * hidden),
        color="0.4",
        fontsize=9,
        ha="right",
    )
    ax.set_xlim(0, x[-1])


def _scientific(value: float) -> str:
    if value in (0, 1):
        return f"{value:g}"
    return f"$10^{{{round(np.log10(value))}}}$"
