"""The figures of notebook 13: the law of impact on ladders it has not seen, one point a rung or one line a ladder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import diagonal, typeset
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BUDGETS = (SKY, BLUE, GREEN, ORANGE, VERMILION, PURPLE)


def confirmation(table: pd.DataFrame, skill: pd.DataFrame) -> "Figure":
    """Measured gain against the gain predicted before the ladder was seen, one panel a locked ladder, one point a rung.

    ``table`` has ``ladder, predicted, gain, J0, labels, filler, cooled``; ``skill`` a row per ladder with ``r2`` and
    ``spearman``.
    """
    names = list(table.ladder.unique())
    figure, axes = panels(1, len(names), width=10.4, height=3.3, sharex=True, sharey=True)
    marks = skill.set_index("ladder")
    for ax, name in zip(np.atleast_1d(axes), names, strict=True):
        rows = table[table.ladder == name]
        points = ax.scatter(rows.predicted, rows.gain, c=rows.J0, cmap="viridis", vmin=0, vmax=1, s=16)
        diagonal(ax, table.predicted, table.gain)
        said = f"$R^2$ = {marks.r2[name]:.2f}\nrank corr. {marks.spearman[name]:.2f}"
        ax.annotate(said, (0.05, 0.95), xycoords="axes fraction", va="top", fontsize=9)
        ax.set(xlabel="predicted gain", title=_described(rows.iloc[0]))
    np.atleast_1d(axes)[0].set_ylabel("measured gain, mean of 5 to 40 updates")
    figure.colorbar(points, ax=axes, label="$J_0$")
    return figure


def _described(row: pd.Series) -> str:
    cooled = "cooled" if row.cooled else "not cooled"
    return f"{row.ladder}: {row.labels} labels, filler {row.filler},\n{cooled}"


def forest(table: pd.DataFrame, points: pd.DataFrame, *, xlabel: str, zero: bool = True) -> "Figure":
    """Means over ladders with t intervals, one row a score, the ladders themselves as pale dots behind.

    ``table`` has ``score, mean, low, high``, best first; ``points`` has ``score, value``.
    """
    figure, ax = panels(1, 1, width=7.6, height=0.36 * len(table) + 1.1)
    rows = np.arange(len(table))[::-1]
    for row, name in zip(rows, table.score, strict=True):
        values = points[points.score == name].value
        ax.plot(values, np.full(len(values), row), "o", color=GREY, ms=3.5, alpha=0.6)
    ax.hlines(rows, table.low, table.high, color=BLUE, lw=2.4)
    ax.plot(table["mean"], rows, "D", color=BLUE, ms=5)
    if zero:
        ax.axvline(0, color=BLACK, lw=0.8)
    ax.set_yticks(rows, [typeset(name) for name in table.score])
    ax.set(xlabel=xlabel)
    return figure


def curves(table: pd.DataFrame) -> "Figure":
    """Measured and predicted gain against the number of updates, for rungs in three bands of J_0: one panel a band.

    ``table`` has ``band, n, gain, low, high`` (means over ladders with t intervals) and a column for each form.
    """
    bands = list(table.band.unique())
    figure, axes = panels(1, len(bands), width=10.0, height=3.4, sharey=True)
    forms = [name for name in table if name not in ("band", "n", "gain", "low", "high")]
    for ax, band in zip(axes, bands, strict=True):
        rows = table[table.band == band]
        ax.errorbar(
            rows.n, rows.gain, [rows.gain - rows.low, rows.high - rows.gain], fmt="o", color=BLACK, capsize=2,
            label="measured, 95% over ladders",
        )  # fmt: skip
        for name, colour, style in zip(
            forms, (VERMILION, BLUE, GREEN, PURPLE), ("--", "-", "-.", ":"), strict=False
        ):
            ax.plot(rows.n, rows[name], color=colour, ls=style, label=name)
        ax.axhline(0, color=BLACK, lw=0.6)
        ax.set(xscale="log", xlabel="updates $n$", title=f"rungs with $J_0$ {band}")
        ax.set_xticks(rows.n, [f"{n:g}" for n in rows.n])
        ax.minorticks_off()
    axes[0].set_ylabel("gain $J_n - J_0$")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5)
    return figure


def residual_map(frame: pd.DataFrame, errors: pd.Series) -> "Figure":
    """Measured less predicted gain against J_0 (left) and along pretraining (right), a thin line a ladder on the right.

    Every ladder is predicted from the others.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.4, sharey=True)
    for cooled, colour, name in ((False, VERMILION, "not cooled"), (True, BLUE, "cooled")):
        own = frame.cooled == cooled
        left.plot(frame.J0[own], errors[own], ".", color=colour, ms=4, alpha=0.6, label=name)
        for ladder in frame.ladder[own].unique():
            rows = frame.ladder == ladder
            right.plot(frame.step[rows], errors[rows], color=colour, lw=0.8, alpha=0.7)
    for ax in (left, right):
        ax.axhline(0, color=BLACK, lw=0.8)
    left.set(xlabel="$J_0$", ylabel="measured less predicted gain")
    left.legend(loc="upper right")
    right.set(xlabel="pretraining step")
    return figure


def matched(pairs: pd.DataFrame, held: pd.DataFrame) -> "Figure":
    """Is it J_0? Left: pairs of rungs of different ladders with equal J_0, difference of gains against difference of
    scores. Right: rungs whose J_0 was held by intervention, gain against score."""
    figure, (left, right) = panels(1, 2, width=9.6, height=3.7)
    left.scatter(pairs.score, pairs.outcome, s=9, color=BLUE, alpha=0.5, lw=0)
    left.axhline(0, color=BLACK, lw=0.6)
    left.axvline(0, color=BLACK, lw=0.6)
    left.set(
        xlabel="difference of scores",
        ylabel="difference of gains",
        title="pairs of equal $J_0$, different ladders",
    )
    for (kind, rows), colour in zip(held.groupby("kind", sort=False), (VERMILION, GREEN), strict=False):
        right.scatter(rows.law, rows.gain, s=12, color=colour, alpha=0.7, lw=0, label=kind)
    right.set(xlabel="law score", ylabel="gain", title="$J_0$ held by intervention")
    right.legend(loc="lower right")
    return figure


def forecasts(table: pd.DataFrame, names: Sequence[str]) -> "Figure":
    """Measured gain against forecasts without a fitted number: a row of panels by budget, one colour a forecast.

    ``table`` has ``budget, gain`` and the columns ``names``.
    """
    budgets = sorted(table.budget.unique())
    figure, axes = panels(1, len(budgets), width=10.8, height=2.9, sharex=True, sharey=True)
    for ax, budget in zip(axes, budgets, strict=True):
        rows = table[table.budget == budget]
        for name, colour in zip(names, (VERMILION, BLUE), strict=False):
            ax.plot(rows[name].clip(-0.3, 1.05), rows.gain, ".", ms=3, color=colour, alpha=0.5, label=name)
        diagonal(ax, rows.gain, rows.gain)
        ax.set(xlabel="forecast", title=f"{budget} updates")
    axes[0].set_ylabel("measured gain")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=3)
    return figure


def decisions(table: pd.DataFrame, totals: Mapping[float, str]) -> "Figure":
    """Regret of every policy at equal total tokens, mean over ladders with t intervals, one panel a total.

    ``table`` has ``total, policy, mean, low, high``.
    """
    figure, axes = panels(1, len(totals), width=10.4, height=4.2, sharey=True, sharex=True)
    order = table.groupby("policy")["mean"].mean().sort_values(ascending=False).index
    rows = {name: i for i, name in enumerate(order)}
    for ax, (total, said) in zip(np.atleast_1d(axes), totals.items(), strict=True):
        own = table[table.total == total]
        y = own.policy.map(rows)
        ax.hlines(y, own.low, own.high, color=BLUE, lw=2)
        ax.plot(own["mean"], y, "D", color=BLUE, ms=4.5)
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set(title=said, xlabel="reward given up")
    np.atleast_1d(axes)[0].set_yticks(list(rows.values()), [typeset(name) for name in rows])
    return figure
