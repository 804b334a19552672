"""The figures of notebook 14: what RL's settings do to the gain, and to how well a score orders it.

A thin line or a dot is a ladder, a thick line or a bar the mean over ladders with its 95% interval.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import typeset
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, panels
from replicate.statistics.over_ladders import over_ladders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)


def curves(table: pd.DataFrame, value: str, *, ylabel: str) -> "Figure":
    """``value`` against the level of one factor, a panel a factor; levels stand at equal distances, in their order.

    ``table`` has a row per factor, level and ladder: ``factor, level, ladder`` and ``value``.
    """
    names = list(table.factor.unique())
    rows = -(-len(names) // 4)
    figure, axes = panels(rows, 4, width=10.6, height=2.35 * rows + 0.3, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        own = table[table.factor == name]
        levels = list(own.level.unique())
        wide = own.pivot(index="level", columns="ladder", values=value).loc[levels]
        ax.plot(np.arange(len(levels)), wide, color=GREY, lw=0.9, alpha=0.8)
        _interval(ax, np.arange(len(levels)), wide, BLUE)
        ax.set_xticks(np.arange(len(levels)), [_folded(level) for level in levels], fontsize=8.5)
        ax.set_title(_folded(name, width=24), fontsize=9.5)
        ax.axhline(0, color=BLACK, lw=0.6)
        ax.margins(x=0.12)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    return figure


def _folded(words: str, width: int = 12) -> str:
    import textwrap

    return textwrap.fill(words, width)


def _interval(ax: "Axes", x: np.ndarray, wide: pd.DataFrame, colour: str, **line) -> None:
    """The mean of the columns of ``wide`` (ladders) for each row, with the interval over them."""
    found = [over_ladders(row) for row in wide.to_numpy()]
    mean = np.array([one.mean for one in found])
    ends = [mean - [one.low for one in found], [one.high for one in found] - mean]
    ax.errorbar(x, mean, ends, color=colour, marker="o", ms=4, capsize=2, lw=1.6, **line)


def effects(table: pd.DataFrame, labels: Mapping[str, str]) -> "Figure":
    """The effects of all factors on several responses, a panel a response: in the mixed model (above) and over ladders
    (below), with 95% intervals; filled markers stand Holm's correction for the number of factors.

    ``table`` is that of :func:`replicate.statistics.factorial.effects`, responses below one another; ``labels`` has the
    words for each response.
    """
    terms = list(table.term.unique())
    figure, axes = panels(
        1, len(labels), width=3.5 * len(labels), height=0.42 * len(terms) + 1.4, sharey=True
    )
    place = {term: len(terms) - 1 - i for i, term in enumerate(terms)}
    for ax, (response, label) in zip(np.atleast_1d(axes), labels.items(), strict=True):
        own = table[table.response == response]
        for (reading, rows), colour, shift in zip(
            own.groupby("reading", sort=False), (VERMILION, BLUE), (0.15, -0.15), strict=True
        ):
            y = rows.term.map(place).to_numpy() + shift
            ax.hlines(y, rows.low, rows.high, color=colour, lw=1.8, label=reading)
            face = np.where(rows.holm < 0.05, colour, "white")
            ax.scatter(rows["mean"], y, s=26, c=face, edgecolors=colour, zorder=3)
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set(xlabel=label)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(list(place.values()), list(place))
    handles, names = first.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def orderings(table: pd.DataFrame, groups: Mapping[str, Sequence[str]], scores: Sequence[str]) -> "Figure":
    """Mean rank correlation of each score (a column) with the gain in each cell (a row), one panel a group of cells.

    ``table`` has ``cell, score, mean, low, high``; a dot marks an interval over ladders that holds 0. ``groups`` has
    the cells of each panel by its title, in order from the top.
    """
    longest = max(map(len, groups.values()))
    figure, axes = panels(1, len(groups), width=10.8, height=0.2 * longest + 2.2)
    for ax, (title, cells) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        wide, low, high = (
            table.pivot(index="cell", columns="score", values=c).loc[list(cells), list(scores)]
            for c in ("mean", "low", "high")
        )
        image = ax.imshow(wide, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        rows, columns = np.nonzero(((low <= 0) & (high >= 0)).to_numpy())
        ax.plot(columns, rows, ".", color=BLACK, ms=2.5)
        ax.set_xticks(
            range(len(scores)), [typeset(name) for name in scores], rotation=60, ha="right", fontsize=8
        )
        ax.set_yticks(range(len(cells)), list(cells), fontsize=7.5)
        ax.grid(False)
        ax.set_title(title)
    figure.colorbar(image, ax=axes, label="rank correlation with the gain, mean over ladders", shrink=0.5)
    return figure


def budgets(shares: pd.DataFrame, orders: pd.DataFrame, by_rate: pd.DataFrame) -> "Figure":
    """Too few updates and too many. Left: the share of 1 - J_0 that is gained, by class of rungs. Middle: how well
    scores order the gain after n updates. Right: the same for one score at three rates, against rate times n.

    ``shares`` has ``band, budget, ladder, share``, ``orders`` ``score, budget, ladder, spearman``, ``by_rate`` ``rate,
    budget, ladder, spearman``.
    """
    figure, (left, middle, right) = panels(1, 3, width=11.0, height=3.8)
    _against_budget(left, shares, "band", "share", "$J_0$ from {}")
    left.axhline(1, color=BLACK, lw=0.8, ls=":")
    left.set(ylabel="gain / $(1 - J_0)$", xlabel="updates $n$", ylim=(-0.6, 1.3))
    _against_budget(middle, orders.assign(score=orders.score.map(typeset)), "score", "spearman", "{}")
    middle.set(ylabel="rank correlation with the gain", xlabel="updates $n$")
    _against_budget(
        right, by_rate.assign(budget=by_rate.budget * by_rate.rate), "rate", "spearman", "rate x {:g}"
    )
    right.set(ylabel="rank correlation of the law", xlabel="updates $n$ times relative rate")
    for ax in (middle, right):
        ax.axhline(0, color=BLACK, lw=0.6)
        ax.set_ylim(-1.05, 1.05)
    for ax in (left, middle, right):
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def _against_budget(ax: "Axes", table: pd.DataFrame, key: str, value: str, words: str) -> None:
    """A line with intervals over ladders for each value of ``key``, against the budget on a logarithmic axis."""
    groups = zip(table.groupby(key, sort=False, observed=True), _COLOURS, strict=False)
    for place, ((name, rows), colour) in enumerate(groups):
        wide = rows.pivot(index="budget", columns="ladder", values=value).dropna()
        beside = wide.index.to_numpy() * 1.07**place  # or the intervals would hide each other
        _interval(ax, beside, wide, colour, label=words.format(name))
    ticks = sorted(table.budget.unique())
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{n:g}" for n in ticks], fontsize=8.5)
    ax.minorticks_off()


def alarms(shares: pd.DataFrame) -> "Figure":
    """The share of updates at which each alarm went off, a row a cell, a column an alarm; in per cent where it is one.

    ``shares`` is indexed by cell. Cells without any alarm are left out.
    """
    shown = shares[(shares > 0).any(axis=1)]
    figure, ax = panels(
        1, 1, width=1.3 * max(shown.shape[1], 2) + 3.2, height=0.17 * max(len(shown), 4) + 1.6
    )
    ax.grid(False)
    if shown.empty:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no alarm in any cell", ha="center", transform=ax.transAxes)
        return figure
    image = ax.imshow(shown, cmap="Oranges", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), share in np.ndenumerate(shown.to_numpy()):
        if share >= 0.005:
            colour = "white" if share > 0.6 else BLACK
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(shown.shape[1]), [_folded(str(name), 14) for name in shown], fontsize=8)
    ax.set_yticks(range(len(shown)), list(shown.index), fontsize=7.5)
    figure.colorbar(image, ax=ax, label="share of updates")
    return figure
