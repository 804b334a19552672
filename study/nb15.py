"""The figures of notebook 15: answers of several tokens, their costates, and six methods that learn them.

A thin line is a ladder, a thick one the mean over ladders, a band or a bar its 95% interval.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    panels,
)
from replicate.statistics.over_ladders import over_ladders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METHODS = {"grpo": VERMILION, "rloo": GREEN, "to go": SKY, "ppo": ORANGE, "bptt": BLUE, "gumbel": PURPLE}
_CREDITS = {"outcome": VERMILION, "to go": SKY, "critic": ORANGE}
_CREDIT_WORDS = {"outcome": "whole reward", "to go": "reward to go", "critic": "exact critic"}
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)


def bias(table: pd.DataFrame) -> "Figure":
    """Length of the mean relaxed gradient along the exact one, 1 without bias, with two standard errors (left); bias
    and standard error by themselves (right), both against the temperature.

    ``table`` has a row per ``task`` and ``temperature``, with ``along`` and its ``error``.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.6)
    for (task, rows), colour in zip(table.groupby("task", sort=False), _COLOURS, strict=False):
        left.errorbar(
            rows.temperature,
            rows.along,
            2 * rows.error,
            color=colour,
            marker="o",
            ms=4,
            capsize=2,
            label=task,
        )
        right.plot(rows.temperature, (rows.along - 1).abs(), color=colour, marker="o", ms=4)
        right.plot(rows.temperature, rows.error, color=colour, ls=":", lw=1.4)
    left.axhline(1, color=BLACK, lw=0.8)
    left.set(ylabel="relaxed gradient along the exact one")
    right.set(ylabel="bias (line), standard error (dotted)", yscale="log")
    for ax in (left, right):
        ax.set(xscale="log", xlabel=r"temperature $\tau$")
        _ticks(ax, sorted(table.temperature.unique()))
    left.legend(fontsize=8.5)
    return figure


def noise(ratios: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Signal over noise of the costate at the prompt against T, a panel a density of the reward, a colour a credit.

    ``ratios`` has ``density, credit, T, ladder, ratio``; what is not above zero is left out of a logarithm.
    """
    figure, axes = panels(1, len(titles), width=5.0 * len(titles), height=3.6, sharey=True)
    for ax, (density, title) in zip(np.atleast_1d(axes), titles.items(), strict=True):
        own = ratios[(ratios.density == density) & (ratios.ratio > 0)]
        for credit, rows in own.groupby("credit", sort=False):
            wide = rows.pivot(index="T", columns="ladder", values="ratio")
            ax.plot(wide.index, wide, color=_CREDITS[credit], lw=0.8, alpha=0.5)
            mean = np.exp(np.log(wide).mean(axis=1))
            ax.plot(mean.index, mean, color=_CREDITS[credit], marker="o", ms=4, label=_CREDIT_WORDS[credit])
        ax.set(xscale="log", yscale="log", title=title, xlabel="tokens of the answer, $T$")
        _ticks(ax, sorted(ratios["T"].unique()))
        ax.legend(fontsize=8.5)
    np.atleast_1d(axes)[0].set_ylabel("signal / noise at the prompt")
    return figure


def positions(
    by_token: pd.DataFrame, by_label: pd.DataFrame, titles: Mapping[str, str], *, horizon: int
) -> "Figure":
    """Signal over noise of the term of each token (top) and at the place of each label in the prompt (bottom), answers
    of ``horizon`` tokens; the columns of both tables are those of :func:`noise` and ``index``."""
    figure, axes = panels(2, len(titles), width=5.0 * len(titles), height=5.6, sharey="row", squeeze=False)
    said = ("term of token", "place of label")
    for row, (table, words) in enumerate(zip((by_token, by_label), said, strict=True)):
        for ax, (density, title) in zip(axes[row], titles.items(), strict=True):
            own = table[(table.density == density) & (table["T"] == horizon)]
            for credit, rows in own.groupby("credit", sort=False):
                wide = rows.pivot(index="index", columns="ladder", values="ratio")
                ax.plot(wide.index + 1, wide, color=_CREDITS[credit], lw=0.8, alpha=0.5)
                mean = wide.mean(axis=1)
                ax.plot(
                    mean.index + 1,
                    mean,
                    color=_CREDITS[credit],
                    marker="o",
                    ms=4,
                    label=_CREDIT_WORDS[credit],
                )
            ax.axhline(0, color=BLACK, lw=0.6)
            ax.set(xlabel=words, title=title if row == 0 else None)
        axes[row, 0].set_ylabel("signal / noise")
    axes[0, 0].legend(fontsize=8.5)
    axes[0, -1].legend(fontsize=8.5)
    return figure


def orders(table: pd.DataFrame, titles: Mapping[str, str]) -> "Figure":
    """Rank correlation of each score with GRPO's gain over the rungs of a ladder, against T, a panel a density.

    ``table`` has ``density, T, ladder, score, spearman``; scores stand side by side at each T.
    """
    figure, axes = panels(1, len(titles), width=5.0 * len(titles), height=3.6, sharey=True)
    horizons, scores = sorted(table["T"].unique()), list(table.score.unique())
    for ax, (density, title) in zip(np.atleast_1d(axes), titles.items(), strict=True):
        for number, (score, colour) in enumerate(zip(scores, _COLOURS, strict=False)):
            own = table[(table.density == density) & (table.score == score)]
            wide = own.pivot(index="T", columns="ladder", values="spearman")
            x = np.array([horizons.index(T) for T in wide.index]) + 0.2 * (number - (len(scores) - 1) / 2)
            ax.plot(x, wide, "o", color=GREY, ms=2.5, alpha=0.7)
            _interval(ax, x, wide, colour, ls="none", label=_math(score))
        ax.axhline(0, color=BLACK, lw=0.6)
        ax.set_xticks(range(len(horizons)), [str(T) for T in horizons])
        ax.set(xlabel="tokens of the answer, $T$", title=title, ylim=(-1.1, 1.1))
    np.atleast_1d(axes)[0].set_ylabel("rank correlation with GRPO's gain")
    np.atleast_1d(axes)[0].legend(fontsize=8.5, loc="lower left")
    return figure


def _math(score: str) -> str:
    return "$J_0 (1 - J_0)$" if score == "J_0 (1 - J_0)" else score.replace(" T", " $T$")


def curves(table: pd.DataFrame, methods: Mapping[str, str], titles: Mapping[str, str]) -> "Figure":
    """Reward gained against updates (below) and completions (above), methods side by side, panels T x density.

    ``table`` is that of :func:`replicate.runs.horizons_tables.curves`; a panel's title says the reward at the start.
    """
    horizons = sorted(table["T"].unique())
    figure, axes = panels(
        len(titles), len(horizons), width=2.35 * len(horizons), height=2.9 * len(titles) + 0.5, squeeze=False,
        sharex=True,
    )  # fmt: skip
    for row, (density, words) in enumerate(titles.items()):
        for ax, T in zip(axes[row], horizons, strict=True):
            own = table[(table.density == density) & (table["T"] == T)]
            if own.empty:
                ax.set_axis_off()
                continue
            _methods(ax, own, methods)
            ax.set_title(f"T = {T}, start {own.before.mean():.2f}", fontsize=9)
        shown = next(ax for ax in axes[row] if ax.axison)
        shown.set_ylabel(f"{words}:\nreward gained", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("updates")
        ax.xaxis.set_tick_params(labelbottom=True)
    if (axes[-1, 0].axison) is False:  # one token has no panel of its own in the last row
        axes[0, 0].set_xlabel("updates")
        axes[0, 0].xaxis.set_tick_params(labelbottom=True)
    each = int((table.samples / table.budget.where(table.budget > 0)).max())
    for ax in axes[0]:
        above = ax.secondary_xaxis("top", functions=(lambda n, e=each: n * e, lambda n, e=each: n / e))
        above.set_xlabel("completions", fontsize=8)
        above.tick_params(labelsize=7)
        ax.title.set_position((0.5, 1.0))
    handles = {line.get_label(): line for ax in axes.flat for line in ax.lines}
    shown = [handles[words] for words in methods.values() if words in handles]
    figure.legend(handles=shown, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _methods(ax: "Axes", own: pd.DataFrame, methods: Mapping[str, str]) -> None:
    for method, words in methods.items():
        wide = own[own.method == method].pivot(index="budget", columns="ladder", values="gained")
        if wide.empty:
            continue
        found = [over_ladders(row) for row in wide.to_numpy()]
        low, high = [one.low for one in found], [one.high for one in found]
        ax.fill_between(wide.index, low, high, color=_METHODS[method], alpha=0.12, lw=0)
        ax.plot(wide.index, wide.mean(axis=1), color=_METHODS[method], lw=1.7, label=words)
    ax.axhline(0, color=BLACK, lw=0.6)
    # An interval of three degrees of freedom may leave every mean behind.
    mean = own.groupby(["method", "budget"]).gained.mean()
    ax.set_ylim(min(mean.min(), 0) - 0.08, max(mean.max(), 0.05) + 0.08)


def critic(margins: pd.DataFrame, *, usual: int, titles: Mapping[str, str]) -> "Figure":
    """What the critic is worth: PPO's gain less that of the better critic-free method, against T (left) and against the
    group size at equal completions (right).

    ``margins`` is the table of :func:`replicate.runs.horizons_tables.margins`; ``usual`` is the group of the left side.
    """
    figure, (left, right) = panels(1, 2, width=10.4, height=3.9, sharey=True)
    sized = margins[margins["T"].isin(margins[margins.group != usual]["T"])]
    for ax, own, by in ((left, margins[margins.group == usual], "T"), (right, sized, "group")):
        levels = sorted(own[by].unique())
        lines = own.groupby(["density", "rivals"], sort=False)
        for number, (((density, rivals), rows), colour) in enumerate(zip(lines, _COLOURS, strict=False)):
            wide = rows.pivot(index=by, columns="ladder", values="margin")
            x = np.array([levels.index(level) for level in wide.index]) + 0.12 * (number - 1)
            ax.plot(x, wide, "o", color=GREY, ms=2.5, alpha=0.7)
            _interval(ax, x, wide, colour, label=f"{titles[density]}: {rivals}")
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xticks(range(len(levels)), [str(level) for level in levels])
    left.set(xlabel="tokens of the answer, $T$", ylabel="PPO's gain less the better of ...")
    words = ", ".join(str(T) for T in sorted(sized["T"].unique()))
    right.set(xlabel=f"group size at 64 completions, $T$ = {words}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, fontsize=9)
    return figure


def trl(table: pd.DataFrame) -> "Figure":
    """Training reward by update of TRL's trainers and of ours, a panel a trainer: the mean over seeds, and from the
    lowest to the highest of them; ``table`` has ``trainer, whose, seed, update, reward``."""
    names = list(table.trainer.unique())
    figure, axes = panels(1, len(names), width=4.6 * len(names), height=3.2, sharey=True)
    for ax, name in zip(np.atleast_1d(axes), names, strict=True):
        for whose, colour in (("TRL", BLACK), ("ours", VERMILION)):
            own = table[(table.trainer == name) & (table.whose == whose)]
            wide = own.pivot(index="update", columns="seed", values="reward")
            ax.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.15, lw=0)
            ax.plot(wide.index, wide.mean(axis=1), color=colour, label=whose)
        ax.set(title=name, xlabel="updates")
    np.atleast_1d(axes)[0].set_ylabel("reward of the batch")
    np.atleast_1d(axes)[0].legend()
    return figure


def _ticks(ax: "Axes", at: list) -> None:
    ax.set_xticks(at, [f"{x:g}" for x in at])
    ax.minorticks_off()


def _interval(ax: "Axes", x: np.ndarray, wide: pd.DataFrame, colour: str, **line) -> None:
    """The mean of the columns of ``wide`` (ladders) for each row, with the interval over them."""
    found = [over_ladders(row) for row in wide.to_numpy()]
    mean = np.array([one.mean for one in found])
    ends = [mean - [one.low for one in found], [one.high for one in found] - mean]
    ax.errorbar(x, mean, ends, **{"color": colour, "marker": "o", "ms": 4, "capsize": 2, "lw": 1.6, **line})
