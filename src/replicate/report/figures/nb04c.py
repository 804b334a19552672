"""The figures of notebook 04c: the family side by side, group sizes, noise against the horizon, training.

Each function takes the table it draws and returns the figure; the caption, which names the task, is the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, jitter, panels
from replicate.statistics.summaries import median_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "REINFORCE": "0.35",
    "RLOO": GREEN,
    "Dr. GRPO": GREEN,
    "GRPO": VERMILION,
    "critic, baseline only": PURPLE,
    "exact critic": ORANGE,
    "critic": ORANGE,
    "BPTT": BLUE,
}


def family(table: pd.DataFrame) -> "Figure":
    """Where the mean update points and how many rollouts make signal and noise equal, a row an estimator.

    ``table`` is indexed by the estimators' names and has the columns ``angle`` (degrees), ``noise`` (rollouts), and
    ``exact`` (whether these are closed forms).
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.9, widths=(1, 1.8), sharey=True)
    rows = table.iloc[::-1]
    y = np.arange(len(rows))
    colours = [_COLOURS.get(name, "0.35") for name in rows.index]
    for ax, column in ((left, "angle"), (right, "noise")):
        ax.scatter(rows[column], y, color=colours, zorder=3, s=42)
        ax.set(yticks=y, yticklabels=rows.index)
    for height, angle, colour in zip(y, rows["angle"], colours, strict=True):
        left.plot([0, angle], [height, height], color=colour, lw=1.6)
    for height, noise in zip(y, rows["noise"], strict=True):
        right.annotate(
            f"{noise:,.2g}" if noise < 10 else f"{noise:,.0f}", (noise, height), (8, -3.5), **_NEAR
        )
    left.set(
        title="one direction ...",
        xlabel=r"angle of the mean update to $\nabla J$ (degrees)",
        xlim=(-0.5, None),
    )
    right.set(
        title="... and very different noise",
        xlabel="rollouts that make signal and noise equal",
        xscale="log",
        xlim=(rows["noise"].min() / 2, rows["noise"].max() * 4),
    )
    return figure


_NEAR = {"textcoords": "offset points"}


def groups(variance: pd.DataFrame, sizes: pd.DataFrame) -> "Figure":
    """What the unknown mean costs against the group size (left), and the best size at equal rollouts (right).

    ``variance`` has the columns ``N, excess, sampled, error``, all relative to the oracle's variance; ``sizes`` has
    ``N, total, sampled, error``, relative to the least total.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.5)
    left.axhline(1, color=BLACK, lw=1)
    N = np.geomspace(2, 32, 60)
    left.plot(N, 1 + variance["excess"].iloc[0] / (N - 1), color=GREEN)
    left.errorbar(
        variance["N"], variance["sampled"], 2 * variance["error"], color=GREEN, ls="none", marker="o"
    )
    left.annotate("knows the value of the start", (2, 1), (0, -14), **_NEAR)
    first = variance.iloc[1]
    left.annotate("mean of the others", (first["N"], 1 + first["excess"]), (8, 8), color=GREEN, **_NEAR)
    left.set(title="a small group's mean does what a value would", ylabel="variance, relative (2 s.e.)")
    right.plot(sizes["N"], sizes["total"], color=GREEN)
    right.errorbar(sizes["N"], sizes["sampled"], 2 * sizes["error"], color=GREEN, ls="none", marker="o")
    right.set(
        title="at equal rollouts a small group is best", ylabel="variance of an update, relative (2 s.e.)"
    )
    for ax in (left, right):
        ax.set(xlabel="group size $N$", xscale="log", xticks=[2, 4, 8, 16, 32], xticklabels=[2, 4, 8, 16, 32])
        ax.minorticks_off()
    left.set_ylim(0, None)
    right.set_ylim(0, None)
    return figure


def horizon(table: pd.DataFrame) -> "Figure":
    """Squared noise against the horizon, a panel a task: lines exact, dots sampled, exponents at the right end.

    ``table`` has the columns ``task, method, T, exact, sampled, error, exponent``.
    """
    tasks = table["task"].unique()
    figure, axes = panels(1, len(tasks), width=11.5, height=3.9, sharey=True)
    for ax, task in zip(axes, tasks, strict=True):
        rows, ends = table[table["task"] == task], []
        for name, part in rows.groupby("method", sort=False):
            colour = _COLOURS[name]
            ax.plot(part["T"], part["exact"], color=colour)
            ax.errorbar(part["T"], part["sampled"], 2 * part["error"], color=colour, ls="none", marker="o")
            ends.append((part["exact"].iloc[-1], f"{name}  {part['exponent'].iloc[-1]:+.1f}", colour))
        ax.set(
            title=task, xlabel="horizon $T$", xscale="log", yscale="log", xlim=(None, 3.6 * rows["T"].max())
        )
        ax.set_xticks(sorted(rows["T"].unique()), sorted(rows["T"].unique()))
        ax.minorticks_off()
        heights = _apart([float(value) for value, _, _ in ends], gap=1.45)
        for height, (_, text, colour) in zip(heights, ends, strict=True):
            ax.annotate(text, (rows["T"].max(), height), (7, -3), color=colour, fontsize=8.5, **_NEAR)
    axes[0].set_ylabel("squared noise of one rollout (2 s.e.)")
    return figure


def training(table: pd.DataFrame) -> "Figure":
    """What each method gained, a dot a seed and the median with its interval, a panel a task.

    ``table`` has the columns ``task, method, share``: gain over the median gain of BPTT.
    """
    tasks, methods = table["task"].unique(), list(table["method"].unique())[::-1]
    figure, axes = panels(1, len(tasks), width=11.0, height=3.7, sharey=True)
    for ax, task in zip(axes, tasks, strict=True):
        for y, method in enumerate(methods):
            share = table[(table["task"] == task) & (table["method"] == method)]["share"].to_numpy()
            colour = _COLOURS.get(method, "0.35")
            shown = np.clip(share, -0.5, None)
            ax.plot(shown, y + jitter(len(share), spread=0.22), "o", color=colour, ms=3, alpha=0.45, mew=0)
            median, low, high = median_interval(share)
            ax.plot([max(low, -0.5), max(high, -0.5)], [y, y], color=colour, lw=2.4)
            ax.plot(max(median, -0.5), y, "|", color=colour, ms=17, mew=2.4)
            worse = (share < -0.5).sum()
            if worse:
                ax.annotate(f"{worse} further left", (-0.5, y + 0.3), fontsize=7.5, color=colour)
        ax.axvline(0, color=GREY, lw=0.8)
        ax.axvline(1, color=BLUE, lw=0.8)
        ax.set(title=task, xlabel="gain over BPTT's median gain", xticks=(-0.5, 0, 0.5, 1))
        ax.set_yticks(range(len(methods)), methods)
    return figure


def _apart(values: list[float], *, gap: float) -> list[float]:
    """Heights for the labels of positive ``values``, in the order given, each at least ``gap`` times the one below."""
    heights, last = dict(enumerate(values)), 0.0
    for k in sorted(heights, key=heights.__getitem__):
        heights[k] = last = max(heights[k], gap * last)
    return list(heights.values())
