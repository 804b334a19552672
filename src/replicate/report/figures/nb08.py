"""The figures of notebook 08: left over right side of Theorem 1 by reading, the horizon, certain tokens, the ladder.

Each function takes the table it draws and returns the figure; the caption, which says what models were measured, is
the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREY, ORANGE, VERMILION, jitter, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUNGS = {"before": "first rung", "climbing": "climbing", "after": "last rung"}
_BETWEEN = {1: "one token in between", 2: "two tokens in between"}
_BEYOND = 1e3  # where a ratio with a right side of zero is drawn


def both_sides(table: pd.DataFrame) -> "Figure":
    """Left side of (23) over its right side with entropies, a row a ``reading``, a dot a model: columns ``reading,
    sent, ratio``. To the right of 1 the bound is broken; an infinite ratio is an arrow at the edge."""
    readings = list(table["reading"].unique())
    figure, ax = panels(1, 1, width=8.6, height=0.4 * len(readings) + 1.2)
    low = table["ratio"].min() / 3
    ax.axvspan(1, _BEYOND * 3, color=VERMILION, alpha=0.08, lw=0)
    ax.axvline(1, color=BLACK, lw=1)
    for i, (_, part) in enumerate(table.groupby("reading", sort=False)):
        colour = VERMILION if part["sent"].iloc[0] else BLUE
        finite = part[np.isfinite(part["ratio"]) & (part["ratio"] < _BEYOND)]
        ax.plot(
            finite["ratio"],
            i + jitter(len(finite), spread=0.16 * (len(part) > 1)),
            "o",
            color=colour,
            alpha=0.75,
            mew=0,
        )
        if len(finite) < len(part):
            arrow = {"arrowstyle": "->", "color": colour, "lw": 2}
            ax.annotate("", (_BEYOND * 2, i), (_BEYOND / 8, i), arrowprops=arrow)
            beyond = part["ratio"].replace(np.inf, np.nan).max()
            text = "right side 0" if np.isnan(beyond) else f"{beyond:.0e}"
            ax.annotate(text, (_BEYOND / 10, i), ha="right", va="center", color=colour, fontsize=8.5)
    ax.set_yticks(range(len(readings)), readings)
    ax.set(xscale="log", xlim=(low, _BEYOND * 3), ylim=(len(readings) - 0.4, -1.1))
    ax.set_xlabel("left side / right side of (23)")
    ax.annotate("bound holds", (0.8, -0.72), ha="right", color=BLACK, fontsize=9)
    ax.annotate("bound broken", (1.25, -0.72), ha="left", color=VERMILION, fontsize=9)
    ax.grid(visible=False, axis="y")
    return figure


def horizon(curves: pd.DataFrame) -> "Figure":
    """Both sides of (23) over the signal, against the number of tokens T: columns ``side, T, mean, low, high``."""
    styles = {
        "right side, entropies": (GREY, "bound (23), entropies"),
        "right side, own norms": (ORANGE, "bound, the path's own norms"),
        "cut costate": (BLUE, "truth: cut costate"),
        "what GRPO sends": (VERMILION, "truth: what GRPO sends"),
    }
    figure, ax = panels(1, 1, width=7.4, height=4.0)
    for side, part in curves.groupby("side", sort=False):
        colour, name = styles[side]
        _band(ax, part, "T", colour, marker="o")
        last = part.iloc[-1]
        ax.annotate(
            name,
            (last["T"], last["mean"]),
            (8, 7 if side == "what GRPO sends" else -3),
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )
    ax.axhline(1, color=BLACK, lw=0.9, ls=":")
    ax.annotate(
        "above: a costate of zero\nwould pass too",
        (curves["T"].max() + 0.15, 1.6),
        fontsize=8.5,
        color=BLACK,
        va="bottom",
    )
    ax.set(yscale="log", xlabel="tokens $T$, the last one rewarded", ylabel="side of (23) / costate's norm")
    ax.set_xlim(curves["T"].min() - 0.2, curves["T"].max() + 3.2)
    ax.set_xticks(sorted(curves["T"].unique()))
    return figure


def meeting(curves: pd.DataFrame) -> "Figure":
    """Relative distances from the relaxed costate against the entropy of the tokens in between, the nearly certain ones
    to the left: columns ``distance, mid, mean, low, high``; entropies at equal steps, since they bunch at log V."""
    styles = {
        "GRPO, soft tokens": (VERMILION, "-"),
        "GRPO, matched straight-through": (ORANGE, "-"),
        "cut costate, soft tokens": (BLUE, "-"),
    }
    levels = sorted(curves["mid"].unique())
    figure, ax = panels(1, 1, width=7.4, height=3.9)
    for name, part in curves.groupby("distance", sort=False):
        colour, style = styles[name]
        _band(ax, part.assign(place=part["mid"].map(levels.index)), "place", colour, style=style, marker="o")
        last = part.iloc[-1]
        ax.annotate(
            name,
            (len(levels) - 1, last["mean"]),
            (8, -3),
            textcoords="offset points",
            color=colour,
            fontsize=9,
        )
    ax.set_xticks(range(len(levels)), [f"{h:g}" for h in levels])
    ax.set(
        yscale="log",
        xlim=(-0.3, len(levels) + 2.7),
        xlabel="entropy of the tokens in between (nats); certain to the left, uniform to the right",
        ylabel="distance / costate's norm",
    )
    return figure


def along_ladder(table: pd.DataFrame) -> "Figure":
    """Both sides of (23) over the signal on each rung, a panel a number ``k`` of tokens in between, a dot a prompt and
    a bar the median: columns ``k, stage, relative, sharp, entropy, spread``."""
    ks = sorted(table["k"].unique())
    figure, axes = panels(1, len(ks), width=4.9 * len(ks), height=4.1, sharey=True, squeeze=False)
    columns = (("entropy", GREY, -0.2), ("sharp", ORANGE, 0.0), ("relative", BLUE, 0.2))
    for ax, k in zip(axes[0], ks, strict=True):
        mine = table[table["k"] == k]
        stages = [stage for stage in _RUNGS if stage in set(mine["stage"])]
        for i, stage in enumerate(stages):
            part = mine[mine["stage"] == stage]
            for column, colour, shift in columns:
                x = i + shift
                ax.plot(
                    x + jitter(len(part), spread=0.05),
                    part[column],
                    "o",
                    color=colour,
                    alpha=0.6,
                    mew=0,
                    ms=4,
                )
                ax.plot([x - 0.09, x + 0.09], [part[column].median()] * 2, color=colour, lw=2.5)
        spread = mine.groupby("stage")["spread"].median()
        ax.set_xticks(range(len(stages)), [f"{_RUNGS[s]}\n{spread[s]:.2g} nats a token" for s in stages])
        ax.axhline(1, color=BLACK, lw=0.9, ls=":")
        ax.set(yscale="log", xlim=(-0.5, len(stages) - 0.4))
        ax.set_title(_BETWEEN.get(k, f"{k} tokens in between"))
        ax.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("side of (23) / costate's norm")
    axes[0, 0].annotate("above 1 a zero costate passes too", (0.35, 1.4), fontsize=8.5, color=BLACK)
    words = ("bound (23), entropies", "bound, own norms", "truth: the cut costate's error")
    for (_, colour, _), text, height in zip(columns, words, (0.19, 0.12, 0.05), strict=True):
        axes[0, -1].annotate(text, (0.03, height), xycoords="axes fraction", color=colour, fontsize=9)
    return figure


def _band(
    ax: "Axes", part: pd.DataFrame, x: str, colour: str, *, style: str = "-", marker: str | None = None
) -> None:
    ax.plot(part[x], part["mean"], style, color=colour, marker=marker)
    ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
