"""The figures of notebook 04: (11) token by token, the group's mean and std, the clip, the family, training.

Each function takes the table it draws and returns the figure; the caption, which names the task, is the notebook's.
Whiskers are two standard errors.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDES = {"score function": (VERMILION, -0.12), "pathwise": (BLUE, 0.12)}
_MARKERS = "os"
# BPTT wide and below, the others narrow and dashed above it, so that three coinciding curves are all seen.
_METHODS = {"BPTT": (BLUE, "-", 3.2), "RLOO": (GREEN, (0, (4, 2)), 1.6), "GRPO": (VERMILION, "-", 1.4)}


def token_by_token(table: pd.DataFrame) -> "Figure":
    """Both sides of (11) at each step (left) and their difference over the same rollouts (right).

    ``table`` has the columns ``side, t, parameter, mean, standard error``, the side "difference" being paired.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.5)
    steps, parameters = table["t"].unique(), list(table["parameter"].unique())
    for (side, name), part in table.groupby(["side", "parameter"]):
        k = parameters.index(name)
        if side == "difference":
            _points(right, part["t"] + (-0.12, 0.12)[k], part, "mean", BLACK, marker=_MARKERS[k], label=name)
        else:
            colour, shift = _SIDES[side]
            _points(left, part["t"] + shift, part, "mean", colour, marker=_MARKERS[k])
            if side == "pathwise":
                left.annotate(name, (0.3, part["mean"].iloc[0]), va="center")
    for height, (side, (colour, _)) in zip((0.18, 0.08), _SIDES.items(), strict=True):
        left.annotate(side, (0.97, height), xycoords="axes fraction", ha="right", color=colour)
    for ax in (left, right):
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set(xlabel="step $t$", xticks=steps)
    left.set(ylabel="contribution to the gradient (2 s.e.)", title="both sides of (11)")
    right.set(ylabel="difference (2 s.e.)", title="score function minus pathwise, same rollouts")
    right.legend(loc="upper right")
    return figure


def group_mean(table: pd.DataFrame) -> "Figure":
    """How long the expected group gradient is, in units of grad J, against the group size.

    ``table`` has the columns ``G, baseline, factor, standard error``, the baselines being "mean" and "leave_one_out".
    """
    figure, ax = panels(1, 1, width=6.2, height=3.5)
    G = np.linspace(1.8, 1.06 * table["G"].max(), 100)
    ax.plot(G, 1 - 1 / G, color=VERMILION, lw=1)
    ax.axhline(1, color=BLUE, lw=1)
    for baseline, colour, label, height in (
        ("mean", VERMILION, "mean of the group, line: $1 - 1/G$", 0.74),
        ("leave_one_out", BLUE, "mean of the others, line: 1", 1.05),
    ):
        part = table[table["baseline"] == baseline]
        _points(ax, part["G"], part, "factor", colour)
        ax.annotate(label, (6.2, height), color=colour)
    ax.set(
        title="What the group's mean does to the length of the expected gradient",
        xlabel="group size $G$",
        ylabel=r"mean estimate along $\nabla J$ (2 s.e.)",
        xticks=sorted(table["G"].unique()),
        ylim=(0.4, 1.15),
    )
    return figure


def group_std(exact: pd.DataFrame, measured: pd.DataFrame) -> "Figure":
    """Weights of prompts after the division by the group's std: exact for binary rewards, measured for returns.

    ``exact`` has the columns ``p, limit`` and one ``G = k`` a group size; ``measured`` has ``1 / std, weight`` and
    ``standard error``.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.6)
    sizes = [name for name in exact if name.startswith("G = ")]
    for name, colour in zip(sizes, (GREY, ORANGE, GREEN, BLUE), strict=True):
        left.plot(exact["p"], exact[name], color=colour)
        # The largest group's curve leaves the panel at the sides and has its label in the middle.
        inside = name == sizes[-1]
        spot = (0.5, exact[name].iloc[len(exact) // 2]) if inside else (1.0, exact[name].iloc[-1])
        offset, ha = ((0, 9), "center") if inside else ((3, 0), "left")
        style = {"color": colour, "ha": ha, "va": "bottom" if inside else "center"}
        left.annotate(f"${name}$", spot, offset, textcoords="offset points", **style)
    left.plot(exact["p"], exact["limit"], color=BLACK, lw=1, ls="--")
    left.annotate(r"$1/\sqrt{p(1-p)}$", (0.1, 4.1))
    left.set(
        title="binary rewards, exact",
        xlabel="success probability $p$ of the prompt",
        ylabel=r"weight on $\nabla p$",
        xlim=(-0.04, 1.17),
        ylim=(0, 5),
    )
    _points(right, measured["1 / std"], measured, "weight", VERMILION)
    reach = np.array([0, 1.1 * measured["1 / std"].max()])
    right.plot(reach, reach, color=BLACK, lw=1, ls="--")
    right.annotate(
        "weight = 1 / std", 2 * (0.5 * reach[1],), (-10, 4), textcoords="offset points", ha="right"
    )
    right.set(
        title="returns of the cart, groups of 64",
        xlabel="1 / std of the prompt's returns",
        ylabel=r"measured weight on $\nabla J$ (2 s.e.)",
    )
    return figure


def clip(table: pd.DataFrame) -> "Figure":
    """Mean gradient of the surrogate, free and clipped, and the true one, against the distance from theta_old.

    ``table`` has the columns ``shift, truth, free, free s.e., clipped, clipped s.e.``.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.6)
    ax.plot(table["shift"], table["truth"], color=BLACK, lw=1)
    for kind, colour, marker in (("free", BLUE, "o"), ("clipped", VERMILION, "s")):
        _points(ax, table["shift"], table, kind, colour, error=f"{kind} s.e.", marker=marker)
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


def family(table: pd.DataFrame) -> "Figure":
    """Bias, noise and misdirection of one update, a row of dots per estimator.

    ``table`` is indexed by the estimators' names and has the columns of
    :func:`replicate.theory.policy_gradients.update_statistics`.
    """
    figure, axes = panels(1, 3, width=10.4, height=3.7, sharey=True)
    rows = table.iloc[::-1]
    rows = rows.assign(miss=1 - rows["cosine"])
    colours = [{"BPTT": BLUE, "GRPO": VERMILION}.get(name, "0.4") for name in rows.index]
    y = np.arange(len(rows))
    for ax, column, error in zip(
        axes, ("along", "noise", "miss"), ("along s.e.", None, "cosine s.e."), strict=True
    ):
        ax.scatter(rows[column], y, color=colours, zorder=3, s=34)
        if error:
            ax.errorbar(rows[column], y, xerr=2 * rows[error], fmt="none", ecolor=colours)
        ax.set(xscale="log", yticks=y, yticklabels=rows.index)
        ax.grid(axis="y", color="0.93")
    axes[0].axvline(1, color=BLACK, lw=0.8)
    axes[0].set_xticks([0.8, 1, 1.5, 2, 3, 5], ["0.8", "1", "1.5", "2", "3", "5"])
    axes[0].minorticks_off()
    axes[0].set(title="length of the mean update", xlabel=r"mean along $\nabla J$ / $\|\nabla J\|$ (2 s.e.)")
    axes[1].set(title="noise of one update", xlabel="std of an update / norm of its mean")
    axes[2].set(title="misdirection of one update", xlabel=r"$1 - {}$mean cosine with $\nabla J$ (2 s.e.)")
    return figure


def training(table: pd.DataFrame) -> "Figure":
    """Mean return against the rollouts seen, a panel per task, with 95 % t-intervals over seeds.

    ``table`` has the columns ``task, method, seed, rollouts, J``.
    """
    from scipy.stats import t

    figure, axes = panels(1, table["task"].nunique(), width=9.6, height=3.6)
    for ax, (task, rows) in zip(axes, table.groupby("task"), strict=True):
        for name, (colour, style, width) in _METHODS.items():
            seeds = rows[rows["method"] == name].groupby("rollouts")["J"]
            mean, half = seeds.mean(), seeds.sem() * t.ppf(0.975, seeds.count() - 1)
            ax.plot(mean.index, mean, color=colour, ls=style, lw=width, label=name)
            ax.fill_between(mean.index, mean - half, mean + half, color=colour, alpha=0.17, lw=0)
        ax.set(xlabel="rollouts seen", title=task)
    axes[0].set_ylabel(f"mean return $J$ (95 % interval, {table['seed'].nunique()} seeds)")
    axes[0].legend(loc="lower right")
    return figure


def _points(
    ax: "Axes",
    x: pd.Series,
    table: pd.DataFrame,
    column: str,
    colour: str,
    *,
    error="standard error",
    **style,
):
    """Dots with whiskers of two standard errors."""
    style = {"marker": "o", "ls": "none", **style}
    ax.errorbar(x, table[column], 2 * table[error], color=colour, **style)
