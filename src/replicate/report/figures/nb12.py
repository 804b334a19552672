"""The figures of notebook 12: figure 5 with its residuals, what orders the gain, what a choice costs, all readings.

A point is a rung or a ladder, an interval is over ladders. Each function takes the table it draws and returns the
figure; the caption is the notebook's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import diagonal, typeset
from replicate.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    jitter,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMS = {
    "J_0 + a + b score": "$J_0 + a + b\\,$score, $b \\geq 0$",
    "z(J_0) + z(score)": "$z(J_0) + z($score$)$",
}
_LEVELS = {
    ("layer", -1): "final state",
    ("headroom", "std"): "times $H$",
    ("headroom", "none"): "no headroom",
    ("advantage", "leave_one_out"): "leave one out",
    ("advantage", "grpo"): "GRPO",
    ("advantage", "reward"): "bare reward",
}


def readiness(table: pd.DataFrame) -> "Figure":
    """Figure 5 for several scores, a column each, a point a rung: post-RL reward against J_0 + a + b score (top), what
    that leaves, against J_0 (middle), post-RL reward against z(J_0) + z(score) (bottom).

    ``table`` has a row per rung and score: ``score, ladder, J0, post, calibrated, scale_free``.
    """
    names = list(table.score.unique())
    figure, axes = panels(3, len(names), width=2.5 * len(names), height=7.4, sharey="row")
    contents = (
        ("calibrated", "post", "mean post-RL reward"),
        ("J0", "residual", "post-RL reward $-$ fit"),
        ("scale_free", "post", "mean post-RL reward"),
    )
    table = table.assign(residual=table.post - table.calibrated)
    for j, name in enumerate(names):
        own = table[table.score == name]
        alone = name == "none"
        for i, (x, y, label) in enumerate(contents):
            axes[i, j].scatter(own[x], own[y], c=own.J0, cmap="viridis", vmin=0, vmax=1, s=7, lw=0)
            if j == 0:
                axes[i, j].set_ylabel(label)
        diagonal(axes[0, j], own.calibrated, own.post)
        axes[1, j].axhline(0, color=BLACK, lw=0.8)
        said = f"root mean square {np.sqrt(np.square(own.residual).mean()):.3f}"
        axes[1, j].set_title(said, fontsize=9)
        axes[0, j].set_title("$J_0$ alone" if alone else typeset(name))
        axes[0, j].set_xlabel("$J_0 + a$" if alone else "$J_0 + a + b\\,$score, $b \\geq 0$")
        axes[1, j].set_xlabel("$J_0$")
        axes[2, j].set_xlabel("$z(J_0)$" if alone else "$z(J_0) + z($score$)$")
    return figure


def rises(table: pd.DataFrame) -> "Figure":
    """How far the correlation with the post-RL reward rises over that of J_0 alone, a dot a ladder: columns ``score``,
    ``form`` (a panel each, with a scale of its own), ``ladder``, ``over_J0``."""
    forms = list(table.form.unique())
    figure, axes = panels(1, len(forms), width=4.6 * len(forms), height=2.6, sharey=True)
    for ax, form in zip(axes, forms, strict=True):
        _strips(ax, table[table.form == form], "over_J0")
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set(title=_FORMS[form], xlabel="correlation, less that of $J_0$ alone")
        ax.locator_params(axis="x", nbins=6)
    return figure


def forest(judged: pd.DataFrame, order: Sequence[str]) -> "Figure":
    """What each predictor knows of the gain, a row each: rank correlation, the partial one over a spline in J_0, R^2 on
    a ladder left out. Dots are ladders, bars the mean's 95% interval over them; R^2 below -0.5 is drawn there."""
    contents = (
        ("spearman", "rank correlation with the gain", (-1.05, 1.05)),
        ("partial", "the same, a spline in $J_0$\ntaken out of both", (-1.05, 1.05)),
        ("r2", "$R^2$ on a ladder left out", (-0.55, 1.05)),
    )
    rows = judged[judged.score.isin(order)].sort_values(
        "score", key=lambda column: column.map(list(order).index), kind="stable"
    )
    figure, axes = panels(1, 3, width=10.2, height=0.36 * len(order) + 1.3, sharey=True)
    for ax, (column, label, limits) in zip(axes, contents, strict=True):
        _strips(ax, rows, column, floor=limits[0])
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set(xlim=limits, xlabel=label)
    return figure


def regrets(judged: pd.DataFrame, order: Sequence[str]) -> "Figure":
    """What (31) costs with each predictor as the score, as a share of the best gain: dots are ladders, bars the mean's
    95% interval over them."""
    rows = judged[judged.score.isin(order)].sort_values(
        "score", key=lambda column: column.map(list(order).index), kind="stable"
    )
    figure, ax = panels(1, 1, width=7.4, height=0.34 * len(order) + 1.0)
    _strips(ax, rows, "regret")
    chance = judged[judged.score == "chance"].regret.mean()
    ax.axvline(chance, color=BLACK, lw=0.8, ls=":")
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set(xlabel="gain given up, as a share of the best rung's (dotted: chance)")
    return figure


def _strips(ax: "Axes", table: pd.DataFrame, column: str, *, floor: float = -np.inf) -> None:
    """One row a predictor, from the top: a dot a ladder, and the mean with Student's interval over ladders."""
    from replicate.statistics.over_ladders import over_ladders

    names = list(table.score.unique())
    for y, name in zip(range(len(names))[::-1], names, strict=True):
        values = table[table.score == name][column].to_numpy(float)
        if np.isnan(values).any():
            continue
        ax.plot(np.maximum(values, floor), y + jitter(len(values), spread=0.22), "o", color=SKY, ms=3, mew=0)
        found = over_ladders(values)
        ax.hlines(y, max(found.low, floor), max(found.high, floor), color=BLUE, lw=2)
        ax.plot(max(found.mean, floor), y, "o", color=BLUE, ms=5)
    ax.set_yticks(range(len(names))[::-1], [typeset(name) for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)


def specification_curve(
    curve: pd.DataFrame,
    marked: Mapping[str, Sequence],
    choices: Mapping[str, Sequence],
    headrooms: pd.DataFrame,
) -> "Figure":
    """All readings in the order of their mean rank correlation with the gain (top, with the band of their intervals
    over ladders), and what each of them chooses (below): a column a reading.

    ``curve`` is that of :func:`replicate.runs.multiverse.curve`, ``marked`` names readings to point at; the inset draws
    ``headrooms``, the same numbers for other kinds of headroom.
    """
    figure, (top, below) = panels(2, 1, width=10.2, height=8.2, heights=(1.25, 1), sharex=True)
    x = np.arange(len(curve))
    top.fill_between(x, curve.low, curve.high, color=GREY, alpha=0.35, lw=0, step="mid")
    colours = dict(zip(sorted(curve.n.unique()), (VERMILION, ORANGE, GREEN, BLUE), strict=False))
    for n, colour in colours.items():
        own = curve.n == n
        label = "no sampling" if n == np.inf else f"{n:.0f} costate{'s' if n > 1 else ''}"
        top.plot(x[own], curve["mean"][own], ".", color=colour, ms=4, label=label)
    top.axhline(0, color=BLACK, lw=0.8)
    top.set(ylim=(-1.05, 1.3), ylabel="rank correlation with the gain,\nmean over ladders")
    top.legend(title="averaged before the norm", loc="upper left", markerscale=2.5, ncols=2)
    _point_at(top, curve, marked)
    _headroom_inset(top, headrooms)
    _choices(below, curve, choices)
    below.set(xlabel="readings, from the lowest correlation to the highest", xlim=(-3, len(curve) + 2))
    return figure


def place_of(curve: pd.DataFrame, reading: Sequence) -> int:
    """The row of ``curve`` that is this reading; ``ValueError`` if none is."""
    fields = list(curve.columns[: len(reading)])
    found = np.flatnonzero((curve[fields] == list(reading)).all(axis=1))
    if len(found) != 1:
        raise ValueError(f"reading: expected one row of the curve, got {len(found)} for {tuple(reading)}")
    return int(found[0])


def _point_at(ax: "Axes", curve: pd.DataFrame, marked: Mapping[str, Sequence]) -> None:
    """Rings and names: in the left half below the curve, in the right one above it, at heights that alternate."""
    places = sorted((place_of(curve, reading), name) for name, reading in marked.items())
    for k, (x, name) in enumerate(places):
        y, right = curve["mean"][x], x > len(curve) / 2
        ax.plot(x, y, "o", ms=8, mfc="none", mec=BLACK, mew=1.3)
        aside, above = (-0.03, 0.2 + 0.1 * ((k + 1) % 2)) if right else (0.04, -0.25)
        ax.annotate(
            name, (x, y), (x + aside * len(curve), y + above), fontsize=9,
            ha="right" if right else "left", arrowprops={"arrowstyle": "-", "lw": 0.8, "shrinkB": 4},
        )  # fmt: skip


def _headroom_inset(ax: "Axes", table: pd.DataFrame) -> None:
    inset = ax.inset_axes((0.68, 0.07, 0.29, 0.29))
    kinds = list(dict.fromkeys(table.headroom))
    for n, colour in ((1, VERMILION), (np.inf, BLUE)):
        own = table[table.n == n].set_index("headroom").loc[kinds]
        inset.hlines(range(len(kinds)), own.low, own.high, color=colour, lw=2)
        inset.plot(own["mean"], range(len(kinds)), "o", color=colour, ms=3.5)
    inset.axvline(0, color=BLACK, lw=0.8)
    inset.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=8)
    inset.tick_params(axis="x", labelsize=8)
    inset.set_xlim(-1, 1)
    inset.set_title("$\\mathcal{V} - \\Delta$ times other headrooms", fontsize=9)


def _choices(ax: "Axes", curve: pd.DataFrame, choices: Mapping[str, Sequence]) -> None:
    titles = {"policy": "action", "n": "costates", "layer": "state"}
    colours = (BLACK, PURPLE)
    y, ticks = 0.0, []
    for k, (factor, levels) in enumerate(choices.items()):
        for level in levels:
            own = np.flatnonzero((curve[factor] == level).to_numpy())
            ax.plot(own, np.full(len(own), y), "|", color=colours[k % 2], ms=6, mew=0.7)
            said = _LEVELS.get((factor, level), f"layer {level}" if factor == "layer" else str(level))
            said = "no sampling" if level == np.inf else said
            ticks.append((y, f"{titles.get(factor, factor)}: {said}" if level == levels[0] else said))
            y -= 1.0
        y -= 0.5
    ax.set_yticks(*zip(*ticks, strict=True), fontsize=8.5)
    ax.set_ylim(y + 0.8, 0.8)
    ax.grid(visible=False)
