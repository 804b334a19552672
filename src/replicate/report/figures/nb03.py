"""The figures of notebook 03: noise laws, z-scores, the boundary term, the relaxed token, the ratio of variances.

Each function takes the table it draws, one row per number, and returns the figure; what was measured, and on how many
samples, is said by the notebook's caption.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, jitter, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, GREEN, ORANGE, VERMILION, PURPLE)  # of the five laws, in the order of the table


def families(table: pd.DataFrame) -> "Figure":
    """Density (left) and score weight (right) of each noise law: columns ``law, x, density, weight``."""
    figure, (left, right) = panels(1, 2, width=9.2, height=3.4)
    ends = table.groupby("law", sort=False)["weight"].last()
    heights = _apart(ends, gap=0.6)
    for (name, part), colour in zip(table.groupby("law", sort=False), _COLOURS, strict=True):
        left.plot(part["x"], part["density"], color=colour)
        right.plot(part["x"], part["weight"], color=colour)
        right.annotate(
            name,
            (part["x"].iloc[-1], ends[name]),
            (part["x"].iloc[-1] + 0.6, heights[name]),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
    noise = r"noise $\xi$ (standard deviations)"
    left.set(title="Density $p$ of the noise", xlabel=noise, ylabel=r"$p(\xi)$ (per standard deviation)")
    right.set(
        title="Weight that SF gives to the signal",
        xlabel=noise,
        ylabel=r"$-\nabla \log p(\xi)$",
        ylim=(-4.2, 4.2),
        xlim=(table["x"].min(), table["x"].max()),
    )
    return figure


def z_scores(table: pd.DataFrame, *, bound: float) -> "Figure":
    """z-score of SF - PD, a dot per coordinate of theta, a column per noise law and number of actions.

    ``table`` has the columns ``law, m, coordinate, z``; ``bound`` is what the worst of all coordinates may reach.
    """
    figure, ax = panels(1, 1, width=8.8, height=3.5)
    laws, sizes = table["law"].unique(), table["m"].unique()
    colours = dict(zip(laws, _COLOURS, strict=True))
    for column, ((law, _), part) in enumerate(table.groupby(["law", "m"], sort=False)):
        ax.plot(
            column + jitter(len(part), spread=0.22),
            part["z"],
            "o",
            ms=3.8,
            color=colours[law],
            alpha=0.6,
            mew=0,
        )
    for level in (-bound, bound):
        ax.axhline(level, color=GREY, lw=1)
    ax.annotate(
        "bound for all coordinates together",
        (len(laws) * len(sizes) - 0.6, bound),
        (0, -12),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    ax.set_xticks(range(len(laws) * len(sizes)), [f"$m = {m}$" for _ in laws for m in sizes])
    for i, law in enumerate(laws):
        middle = (i + 0.5) * len(sizes) - 0.5
        ax.annotate(
            law,
            (middle, 0),
            (0, -32),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=colours[law],
        )
    ax.set(
        title=r"Do SF and PD agree in every coordinate of $\theta$?",
        ylabel="mean of SF $-$ PD (standard errors)",
        ylim=(-1.1 * bound, 1.1 * bound),
        xlim=(-0.6, len(laws) * len(sizes) - 0.4),
    )
    ax.set_xlabel("actions $m$ and noise law", labelpad=22)
    ax.grid(axis="x", visible=False)
    return figure


def boundary_term(table: pd.DataFrame) -> "Figure":
    """Both sides of (10) along the location, a panel per noise law whose density jumps at an end of its support.

    ``table`` has the columns ``law, mu, SF, PD, closed form``; dots are SF plus the boundary term in closed form.
    """
    laws = table["law"].unique()
    figure, axes = panels(1, len(laws), width=9.2, height=3.7)
    for ax, law in zip(axes, laws, strict=True):
        part = table[table["law"] == law]
        mended = part["SF"] + part["closed form"]
        ax.plot(part["mu"], part["PD"], color=BLUE, lw=4, alpha=0.45, label="PD, the true gradient")
        ax.plot(part["mu"], part["SF"], color=VERMILION, label="SF")
        ax.plot(part["mu"], mended, "o", color=BLACK, ms=3.5, label="SF + boundary term")
        ax.set(title=f"Both sides of (10) under {law} noise", xlabel=r"location $\mu$")
    axes[0].set_ylabel(r"gradient of $\mathbb{E}[\varphi(\mu + \xi)]$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def relaxed_token(table: pd.DataFrame, *, norm: float) -> "Figure":
    """Bias (with two standard errors) and spread of the relaxed token's pathwise gradient against the temperature.

    ``table`` has the columns ``tau, bias, standard error, spread``; all are divided by ``norm``, that of the true
    gradient. Hollow marks: a bias of less than two standard errors.
    """
    figure, ax = panels(1, 1, width=6.4, height=3.7)
    tau, bias, error = table["tau"], table["bias"] / norm, 2 * table["standard error"] / norm
    seen = bias > error
    floor = bias.min() / 3
    # On a logarithmic axis a bar that crosses zero would have no lower end: it stops at the axis.
    below = np.minimum(error, bias - floor * 0.1)
    ax.errorbar(tau, bias, (below, error), fmt="-", color=VERMILION)
    ax.plot(tau[seen], bias[seen], "o", color=VERMILION)
    ax.plot(tau[~seen], bias[~seen], "o", color=VERMILION, mfc="white", zorder=3)
    ax.plot(tau, table["spread"] / norm, "s-", color=BLUE)
    first = np.flatnonzero(seen)[0]
    ax.annotate(
        "bias of the mean (2 s.e.)",
        (tau.iloc[first], bias.iloc[first]),
        (12, -16),
        textcoords="offset points",
        color=VERMILION,
    )
    ax.annotate(
        "standard deviation of one sample",
        (tau.iloc[0], table["spread"].iloc[0] / norm),
        (18, 2),
        textcoords="offset points",
        color=BLUE,
    )
    ax.axhline(1, color=GREY, lw=1)
    ax.annotate(
        "norm of the true gradient", (tau.iloc[0], 1), (0, 4), textcoords="offset points", color="0.4"
    )
    ax.set(
        title="Pathwise gradient of a relaxed token",
        xscale="log",
        yscale="log",
        xlabel=r"temperature $\tau$ of the relaxed token",
        ylabel="relative to the true gradient's norm",
        ylim=(floor, 9),
    )
    ax.set_xticks(tau, [f"{t:g}" for t in tau])
    ax.minorticks_off()
    return figure


def variance_ratio(table: pd.DataFrame) -> "Figure":
    """Var_SF / Var_PD against the number of actions, a line per noise scale: exact lines, measured dots (2 s.e.).

    ``table`` has the columns ``m, sigma, ratio, standard error, exact``.
    """
    figure, ax = panels(1, 1, width=6.4, height=4.0)
    for (sigma, part), colour in zip(table.groupby("sigma"), (BLUE, GREEN, ORANGE, VERMILION), strict=True):
        ax.plot(part["m"], part["exact"], color=colour)
        ax.errorbar(part["m"], part["ratio"], 2 * part["standard error"], fmt="o", color=colour)
        _label_end(ax, part["m"], part["exact"], rf"$\sigma = {sigma:g}$", colour)
    ax.axhline(1, color=GREY, lw=1)
    ax.annotate("equal variances", (1, 1), (0, 3), textcoords="offset points", color="0.4")
    ax.set(
        title="Variance of SF over PD: lines exact, dots measured (2 s.e.)",
        xscale="log",
        yscale="log",
        xlabel="action dimensions $m$",
        ylabel=r"$\mathrm{Var}_{\mathrm{SF}}\;/\;\mathrm{Var}_{\mathrm{PD}}$",
        xlim=(0.9, 150),
    )
    ax.set_xticks(table["m"].unique(), [f"{m}" for m in table["m"].unique()])
    ax.minorticks_off()
    return figure


def _apart(heights: pd.Series, *, gap: float) -> pd.Series:
    """Heights of labels in the order of ``heights``, pushed apart until neighbours are ``gap`` from one another."""
    order = heights.sort_values()
    placed = order.to_numpy(copy=True)
    for _ in range(200):
        short = np.maximum(gap - np.diff(placed), 0)
        placed[:-1] -= short / 2
        placed[1:] += short / 2
    return pd.Series(placed, order.index)[heights.index]


def _label_end(ax: "Axes", x: pd.Series, y: pd.Series, text: str, colour: str) -> None:
    """Writes ``text`` to the right of a line's last point."""
    ax.annotate(text, (x.iloc[-1], y.iloc[-1]), (9, 0), textcoords="offset points", color=colour, va="center")
