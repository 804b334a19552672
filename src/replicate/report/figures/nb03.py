"""The figures of notebook 03: noise laws, what a jump leaves, a variance that climbs, the relaxed token, variances.

Each function takes the table it draws, one row per number, and returns the figure; what was measured, and on how many
samples, is said by the notebook's caption.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, panels
from replicate.theory.noise_laws import Law

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


def boundary_term(densities: pd.DataFrame, table: pd.DataFrame) -> "Figure":
    """Densities with a jump (above), and both sides of (10) along the location (below), a column per noise law.

    ``densities`` has the columns ``law, x, density, height``: two rows at each jump, the second with its height, NaN
    elsewhere. ``table`` has ``law, mu, SF, truth, jump``; the grey area is what SF misses, dots are SF plus the jump
    term.
    """
    laws = table["law"].unique()
    figure, axes = panels(2, len(laws), width=9.6, height=5.2, heights=(1, 1.7))
    for column, law in enumerate(laws):
        _jumps(axes[0, column], densities[densities["law"] == law])
        axes[0, column].set(title=law[0].upper() + law[1:], xlabel=r"noise $\xi$", ylim=(0, None))
        part, ax = table[table["law"] == law], axes[1, column]
        ax.fill_between(part["mu"], part["SF"], part["truth"], color="0.85")
        ax.plot(part["mu"], part["truth"], color=BLUE, lw=4, alpha=0.45)
        ax.plot(part["mu"], part["SF"], color=VERMILION)
        ax.plot(part["mu"][::4], (part["SF"] + part["jump"])[::4], "o", color=BLACK, ms=3.5)
        ax.set(xlabel=r"location $\mu$")
    axes[0, 0].set_ylabel(r"density $p(\xi)$")
    axes[1, 0].set_ylabel(r"gradient of $\mathbb{E}\,\varphi(\mu + \xi)$")
    for ax in axes[1, 1:]:
        ax.sharey(axes[1, 0])
    figure.legend(
        [*axes[1, 0].lines, *axes[1, 0].collections],
        ["true gradient", "score function", "score function + jump term", "what the score function misses"],
        loc="outside lower center",
        ncols=4,
    )
    return figure


def density_curves(laws: Mapping[str, Law], reach: float) -> pd.DataFrame:
    """Densities of laws that jump, between -``reach`` and ``reach``: the table that :func:`boundary_term` draws."""
    tables = []
    for name, law in laws.items():
        jumps = dict(law.jumps)
        ends = [-reach, *jumps, reach]
        rows = []
        for low, high in itertools.pairwise(ends):
            inside = np.linspace(low, high, 121)
            inside[[0, -1]] = np.nextafter(inside[[0, -1]], (high, low))  # the limits from inside
            known = (inside > law.low) & (inside < law.high)
            density = np.where(known, law.density(inside), 0)
            rows += [(x, d, np.nan) for x, d in zip(inside, density, strict=True)]
            rows[-len(inside)] = (low, density[0], jumps.get(low, np.nan))
            rows.append((high, np.nan, np.nan))  # the pen is lifted
        tables.append(pd.DataFrame(rows, columns=["x", "density", "height"]).assign(law=name))
    return pd.concat(tables)


def climbing_variance(table: pd.DataFrame, *, growth: float, exact: float) -> "Figure":
    """Sample second moment of SF against the number of samples: medians and middle halves of many repeats.

    ``table`` has the columns ``law, n, median, low, high``. The first law's median should grow by ``growth`` for every
    factor e of n (dashed, from its middle point); the second law's variance is ``exact`` (dashed).
    """
    figure, ax = panels(1, 1, width=6.8, height=3.9)
    says = ("climbs as predicted\n(dashed), for ever", "settles on its exact\nvariance (dashed)")
    first = table[table["law"] == table["law"].iloc[0]]
    steps = np.log(first["n"]) - np.log(first["n"]).mean()
    dashed = (first["median"].mean() + growth * steps, exact + 0 * steps)
    for (law, part), line, text, colour in zip(
        table.groupby("law", sort=False), dashed, says, (VERMILION, BLUE), strict=True
    ):
        ax.fill_between(part["n"], part["low"], part["high"], color=colour, alpha=0.2, lw=0)
        ax.plot(part["n"], part["median"], "o-", color=colour)
        ax.plot(first["n"], line, "--", color=BLACK, lw=1)
        _label_end(ax, part["n"], part["median"], f"{law}:\n{text}", colour)
    ax.set(
        title="One variance settles, the other climbs without end",
        xscale="log",
        xlabel="samples $n$",
        ylabel="sample second moment of SF",
        ylim=(0, None),
        xticks=first["n"],
        xlim=(first["n"].min() * 0.8, first["n"].max() * 22),
    )
    return figure


def waves(lines: pd.DataFrame, dots: pd.DataFrame, crossings: Mapping[int, float]) -> "Figure":
    """Var_SF / Var_PD for sin(omega a_1) against omega sigma, a line a dimension: exact lines, measured dots (2 s.e.).

    ``lines`` and ``dots`` have the columns ``d_a, x, ratio`` (dots also ``error``); ``crossings`` holds x where the
    variances are equal, by dimension.
    """
    figure, ax = panels(1, 1, width=7.2, height=4.3)
    ax.axhspan(1e-3, 1, color="0.94", lw=0)
    for (d_a, part), colour in zip(lines.groupby("d_a"), (BLUE, GREEN, ORANGE, VERMILION), strict=True):
        measured = dots[dots["d_a"] == d_a]
        ax.plot(part["x"], part["ratio"], color=colour)
        ax.errorbar(
            measured["x"], measured["ratio"], 2 * measured["error"], fmt="o", ms=3.5, lw=1, color=colour
        )
        ax.plot(crossings[d_a], 1, "D", ms=7, color=colour, mec="white", zorder=4)
        _label_end(ax, part["x"], part["ratio"], f"$d_a = {d_a}$", colour)
    ax.axhline(1, color=GREY, lw=1)
    side = {"textcoords": "offset points", "color": "0.35"}
    ax.annotate("pathwise varies less", (lines["x"].max(), 1), (-3, 5), ha="right", **side)
    ax.annotate("score function varies less", (lines["x"].min(), 1), (3, -14), **side)
    ax.set(
        title="Beyond the diamond the score function wins",
        xscale="log",
        yscale="log",
        xlabel=r"frequency of the signal in noise widths, $\omega\sigma$",
        ylabel=r"$\mathrm{Var}_{\mathrm{SF}}\;/\;\mathrm{Var}_{\mathrm{PD}}$",
        xlim=(lines["x"].min() * 0.95, lines["x"].max() * 1.6),
        ylim=(lines["ratio"].min() / 1.6, lines["ratio"].max() * 1.5),
    )
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16) if lines["x"].min() <= t <= lines["x"].max()]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.tick_params(which="minor", bottom=False, left=False)
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

    ``table`` has the columns ``d_a, sigma, ratio, error, exact``.
    """
    figure, ax = panels(1, 1, width=6.4, height=4.0)
    for (sigma, part), colour in zip(table.groupby("sigma"), (BLUE, GREEN, ORANGE, VERMILION), strict=True):
        ax.plot(part["d_a"], part["exact"], color=colour)
        ax.errorbar(part["d_a"], part["ratio"], 2 * part["error"], fmt="o", color=colour)
        _label_end(ax, part["d_a"], part["exact"], rf"$\sigma = {sigma:g}$", colour)
    ax.axhline(1, color=GREY, lw=1)
    ax.annotate("equal variances", (1, 1), (0, 3), textcoords="offset points", color="0.4")
    ax.set(
        title="Quadratic signals: the score function always varies more",
        xscale="log",
        yscale="log",
        xlabel="action dimensions $d_a$",
        ylabel=r"$\mathrm{Var}_{\mathrm{SF}}\;/\;\mathrm{Var}_{\mathrm{PD}}$",
        xlim=(0.9, 150),
    )
    ax.set_xticks(table["d_a"].unique(), [f"{d}" for d in table["d_a"].unique()])
    ax.minorticks_off()
    return figure


def _jumps(ax: "Axes", part: pd.DataFrame) -> None:
    """A density with its jumps drawn as dashed uprights, each with its height beside it."""
    ax.plot(part["x"], part["density"], color=BLACK)
    for place, height, top in part.loc[part["height"].notna(), ["x", "height", "density"]].itertuples(
        index=False
    ):
        low, high = sorted((top, top - height))
        ax.plot([place, place], [low, high], "--", color=VERMILION, lw=1.6)
        outside = -1 if height > 0 else 1
        ax.annotate(
            f"{height:+.2f}".replace("-", "\N{MINUS SIGN}"),
            (place, (low + high) / 2),
            (6 * outside, 0),
            textcoords="offset points",
            color=VERMILION,
            va="center",
            ha="left" if outside > 0 else "right",
        )


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
