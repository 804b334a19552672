"""The figures of notebook 08: both sides of Theorem 1, absolute against relative error, bias against variance.

Each function takes the table it draws and returns the figure; the caption, which says what models were measured, is
the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = {"before": ("first", GREY), "climbing": ("climbing", ORANGE), "after": ("last", BLUE)}
_MARKERS = ("o", "^", "s", "D")
_ESTIMATES = {
    "score function": (BLUE, "-"),
    "relaxed": (VERMILION, "-"),
    "Gumbel": (ORANGE, "-"),
    "control variate": (GREEN, "-"),
    "weighted mean": ("0.25", "--"),
}


def both_sides(table: pd.DataFrame) -> "Figure":
    """Left side of (23) at t = 1 against its right sides, one point a rollout: columns ``t, sharp, entropy`` and
    ``error`` (the cut costate, left panel) or ``sent`` (what GRPO sends in expectation, right panel)."""
    figure, axes = panels(1, 2, width=9.0, height=3.9, sharex=True, sharey=True)
    first = table[table["t"] == 1]
    x, y = first[["sharp", "entropy"]], first[["error", "sent"]]
    reach = np.array([x.min().min() / 2, x.max().max() * 2])
    for ax, column, title in zip(
        axes,
        ("error", "sent"),
        ("costate with the token path cut", "costate that GRPO sends, in expectation"),
        strict=True,
    ):
        broken = first[column] > first["sharp"]
        ax.loglog(first["entropy"], first[column], "o", color=GREY, mfc="none", mew=0.9)
        ax.loglog(first["sharp"][~broken], first[column][~broken], "o", color=BLUE, mew=0)
        ax.loglog(first["sharp"][broken], first[column][broken], "D", color=VERMILION, mew=0)
        ax.plot(reach, reach, color=BLACK, lw=0.9)
        ax.set(xlabel="right side of (23)", title=title, xlim=reach)
        ax.set_ylim(y.min().min() / 1.6, y.max().max() * 1.6)
    axes[0].set_ylabel("left side: distance from $\\lambda_1$")
    for ax, height, text, colour in (
        (axes[0], 0.13, "filled: $\\|K_k\\|$ itself", BLUE),
        (axes[0], 0.05, "open: $C_k H_k / \\log V$", "0.4"),
        (axes[1], 0.05, "diamonds: above the right side", VERMILION),
    ):
        ax.annotate(text, (0.97, height), xycoords="axes fraction", ha="right", color=colour, fontsize=9)
    axes[0].annotate(
        "left = right", (0.04, 0.9), xycoords="axes fraction", color=BLACK, fontsize=9, ha="left"
    )
    return figure


def absolute_relative(table: pd.DataFrame, curves: pd.DataFrame, *, last: float) -> "Figure":
    """Heat maps of the absolute and the relative error over the entropies of the tokens in between (``mid``) and of
    the rewarded one (``last``); to their right a cut at ``last`` nats of the latter, with intervals.

    ``table`` has a row a pair, with ``error`` and ``relative``; ``curves`` has ``mid, distance, mean, low, high``.
    """
    from matplotlib.colors import LogNorm

    figure, axes = panels(1, 3, width=11.4, height=3.7, widths=(1, 1, 1.1))
    for ax, column, title in (
        (axes[0], "error", "absolute: $\\|\\lambda^{\\rm cut}_1-\\lambda_1\\|$"),
        (axes[1], "relative", "relative: the same / $\\|\\lambda_1\\|$"),
    ):
        grid = table.pivot(index="mid", columns="last", values=column)
        image = ax.imshow(grid, norm=LogNorm(), cmap="viridis", origin="lower", aspect="auto")
        ax.set_xticks(range(grid.shape[1]), [f"{h:g}" for h in grid.columns], rotation=50)
        ax.set_yticks(range(grid.shape[0]), [f"{h:g}" for h in grid.index])
        ax.set(xlabel="entropy of the rewarded token (nats)", title=title)
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax)
    axes[0].set_ylabel("entropy of the tokens in between (nats)")
    levels = sorted(curves["mid"].unique())
    for (name, part), colour in zip(curves.groupby("distance", sort=False), (BLUE, VERMILION), strict=True):
        _band(axes[2], part.assign(place=part["mid"].map(levels.index)), "place", colour)
        at = part[part["mid"] == levels[-4]].iloc[0]
        height = at["low"] / 2.5 if name == "cut costate" else at["high"] * 1.35
        axes[2].annotate(name, (len(levels) - 4, height), ha="center", color=colour, fontsize=9)
    axes[2].set_xticks(range(len(levels)), [f"{h:g}" for h in levels], rotation=50)
    axes[2].set(
        yscale="log",
        xlim=(-0.3, len(levels) - 0.7),
        xlabel="entropy of the tokens in between (nats)",
        ylim=(curves["low"].min() / 1.5, 3.5),
        ylabel="distance from $\\lambda_1$ / $\\|\\lambda_1\\|$",
        title=f"relative, rewarded token at {last:g} nats",
    )
    return figure


def along_ladder(table: pd.DataFrame) -> "Figure":
    """Absolute and relative error, at the prompt's embeddings, against the entropy of the tokens in between: a colour
    a rung (``stage``), a marker for each number ``k`` of tokens in between."""
    figure, axes = panels(1, 2, width=9.4, height=3.5)
    columns = {
        "at embeddings": ("error of the cut costate", "norm at the prompt's embeddings"),
        "relative": ("the same, relative to the costate", "ratio, at the prompt's embeddings"),
    }
    for ax, (column, (title, label)) in zip(axes, columns.items(), strict=True):
        for stage, part in table.groupby("stage", sort=False):
            name, colour = _STAGES[stage]
            for (k, mine), marker in zip(part.groupby("k"), _MARKERS, strict=False):
                ax.loglog(
                    mine["H"],
                    mine[column],
                    marker,
                    color=colour,
                    mfc=colour if k == 1 else "none",
                    label=f"{name} rung, $k$ = {k}",
                )
        ax.set(title=title, xlabel="mean entropy in between (nats)", ylabel=label)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bias_variance(curves: pd.DataFrame) -> "Figure":
    """Mean squared errors against the group size, with intervals: a row of panels a reward, a column an entropy;
    columns ``reward, H, estimate, G, mean, low, high``."""
    rewards, levels = curves["reward"].unique(), sorted(curves["H"].unique(), reverse=True)
    figure, axes = panels(len(rewards), len(levels), width=10.4, height=6.0, sharex=True, sharey=True)
    for (i, reward), (j, level) in ((a, b) for a in enumerate(rewards) for b in enumerate(levels)):
        ax = axes[i, j]
        panel = curves[(curves["reward"] == reward) & (curves["H"] == level)]
        for name, part in panel.groupby("estimate", sort=False):
            colour, style = _ESTIMATES[name]
            if name == "weighted mean":  # its band would hide those of its two parts
                part = part.assign(low=part["mean"], high=part["mean"])
            _band(ax, part, "G", colour, style=style, label=name)
        ax.axhline(1.0, color=BLACK, lw=0.8, ls=":")
        ax.set(xscale="log", yscale="log")
        ax.set_title(f"reward: {reward}; entropy {level:g} nats", fontsize=9.5)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean squared error / $\\|g\\|^2$")
    for ax in axes[-1]:
        ax.set_xlabel("group size $G$")
    axes[0, -1].annotate("the answer 0", (curves["G"].min(), 1.2), fontsize=8, color="0.3")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def _band(ax: "Axes", part: pd.DataFrame, x: str, colour: str, *, style: str = "-", label: str = "") -> None:
    ax.plot(part[x], part["mean"], style, color=colour, label=label)
    ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
