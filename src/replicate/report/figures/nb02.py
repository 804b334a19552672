"""The figures and tables of notebook 02: routes to a costate, A.2, planted slips, means, and where they fail.

Each function takes the table it draws, one row per number, and returns the figure; which task was measured is said by
the notebook's caption.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from replicate.report import markdown
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, SKY, VERMILION, panels
from replicate.statistics.agreement import relative_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MINUS = "\u2212"


def written(table: pd.DataFrame, form: str) -> str:
    """``table`` as Markdown, its numbers in ``form`` (``"{:.3f}"``) between backquotes, other entries as they are."""
    numbers = table.select_dtypes("number").columns
    shown = table.assign(**{name: [f"`{form.format(x)}`" for x in table[name]] for name in numbers})
    rows = (markdown.row(*(str(cell) for cell in row)) for row in shown.itertuples(index=False))
    plain = [name for name in table if name not in numbers]
    return markdown.head(*plain, *numbers, numbers=len(numbers)) + "\n".join(rows)


def pairs(results: dict[str, Float[Tensor, "..."]]) -> pd.DataFrame:
    """The relative error of each pair of routes to one quantity: the columns ``route, other, relative error``."""
    rows = [(a, b, relative_error(results[a], results[b])) for a, b in itertools.combinations(results, 2)]
    return pd.DataFrame(rows, columns=["route", "other", "relative error"])


def telescoping(table: pd.DataFrame) -> "Figure":
    """Partial sums of A.2 against the number of rewards counted: forwards, and backwards before the boundary term.

    ``table`` has the columns ``n, forwards, backwards, boundary``.
    """
    figure, ax = panels(1, 1, width=7.0, height=3.8)
    n, backwards, corrected = table["n"], table["backwards"], table["backwards"] - table["boundary"]
    ax.fill_between(n, backwards, corrected, color=SKY, alpha=0.35, lw=0)
    ax.plot(n, backwards, color=BLUE, label="costates alone")
    ax.plot(n, corrected, color=GREEN, ls="--", label="costates less the boundary term")
    ax.plot(
        n, table["forwards"], "o", color=VERMILION, ms=6, label="finite differences of the first $n$ rewards"
    )
    ax.set(
        title="The gap is one boundary term, and it closes when the last reward is counted",
        xlabel="rewards counted, $n$ (the last one is terminal)",
        ylabel=r"$\partial/\partial\theta_i$ of the first $n$ rewards",
        xticks=n,
    )
    ax.legend(loc="best")
    return figure


def planted_errors(table: pd.DataFrame) -> "Figure":
    """Relative error of each deliberate slip as a bar from zero, and of the formula without; a panel an equation.

    ``table`` has the columns ``equation, slip, relative error``.
    """
    equations = list(table.groupby("equation", sort=False))
    heights = [len(part) for _, part in equations]
    figure, axes = panels(len(equations), 1, width=7.6, height=4.2, heights=heights, sharex=True)
    for ax, (equation, part) in zip(axes, equations, strict=True):
        errors = 100 * part["relative error"].to_numpy()
        rows = np.arange(len(part))[::-1]
        colours = [BLUE, *[VERMILION] * (len(part) - 1)]  # the first row is no slip
        ax.barh(rows, errors, color=colours, height=0.62)
        for row, error, colour in zip(rows, errors, colours, strict=True):
            text = f"{error:.0f} %" if error > 1e-3 else "0 (to eleven digits or more)"
            ax.annotate(text, (error, row), (4, 0), textcoords="offset points", va="center", color=colour)
        ax.set_yticks(rows, part["slip"])
        ax.set(
            title=f"{equation}",
            ylim=(-0.6, len(part) - 0.4),
            xlim=(0, 1.15 * 100 * table["relative error"].max()),
        )
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
    axes[-1].set_xlabel("relative error against finite differences (%)")
    return figure


def riccati(cloud: pd.DataFrame, slopes: pd.DataFrame) -> "Figure":
    """Left: single costates against the closed form, and their means in bins. Right: fitted slopes on the closed form.

    ``cloud`` has the columns ``g, costate`` (one row a trajectory, the position entries at t = 0); ``slopes`` has ``t,
    entry, slope, standard error, closed form``.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=4.0)
    some = cloud.iloc[:1500]
    left.plot(some["g"], some["costate"], ".", color=GREY, ms=2.5, alpha=0.5, mew=0)
    edges = np.linspace(-1.9, 1.9, 12) * cloud["g"].std()
    bins = cloud.groupby(pd.cut(cloud["g"], edges), observed=True)
    middle, error = bins.mean(), 2 * bins["costate"].sem()
    ends = np.array([edges[0], edges[-1]]) * 1.25
    left.plot(ends, ends, color=BLACK, lw=1)
    left.errorbar(middle["g"], middle["costate"], error, fmt="o", color=BLUE, ms=6)
    left.annotate("single costates", _at(left, 0.04, 0.93), xycoords="axes fraction", color="0.4")
    left.annotate("their means in bins", _at(left, 0.04, 0.86), xycoords="axes fraction", color=BLUE)
    left.annotate(r"equality", _at(left, 0.04, 0.79), xycoords="axes fraction", color=BLACK)
    spread = np.abs(some["costate"]).quantile(0.99)
    left.set(
        title="One costate scatters; the mean is the value gradient",
        xlabel=r"value gradient $g_0(s)$ in closed form (position entry)",
        ylabel=r"costate $\hat\lambda_0$ of one trajectory".replace(r"\hat", ""),
        xlim=tuple(ends),
        ylim=(-spread, spread),
    )
    last = slopes["t"].max()
    for (entry, part), colour in zip(
        slopes.groupby("entry", sort=False), (BLUE, GREEN, VERMILION), strict=True
    ):
        right.plot(part["t"], part["closed form"], color=colour, lw=1.2)
        right.errorbar(part["t"], part["slope"], 2 * part["standard error"], fmt="o", color=colour)
        y = part["closed form"].iloc[-1]
        right.annotate(entry, (last, y), (8, 0), textcoords="offset points", color=colour, va="center")
    right.set(
        title=r"Dots: slope of $\lambda_t$ in $s_t$, fitted; lines: $-2\mathbf{P}_t$",
        xlabel="step $t$",
        ylabel=r"entry of $-2\mathbf{P}_t$ (reward per m, m/s)",
        xlim=(-0.4, last * 1.32 + 1),
    )
    return figure


def _at(ax: "Axes", x: float, y: float) -> tuple[float, float]:
    return x, y


def value_field(field: pd.DataFrame, clouds: pd.DataFrame, axis_names: tuple[str, str]) -> "Figure":
    """A map of the value with its gradient, and at the places marked on it the costates that two estimators draw.

    ``field`` has the columns ``x, y, V, v_x, v_y``; ``clouds`` has ``place, x, y, kind, v_x, v_y`` with the kinds
    ``score function``, ``pathwise``, ``value gradient`` (one row a place). Arrows are drawn in units of the axes.
    """
    figure, axes = panels(2, 2, width=9.6, height=7.4)
    ax, *small = axes.flat
    _map(ax, field, axis_names)
    for cell, (place, part) in zip(small, clouds.groupby("place", sort=False), strict=True):
        ax.plot(part["x"].iloc[0], part["y"].iloc[0], "o", color=VERMILION, ms=16, mec="white")
        ax.annotate(place, part[["x", "y"]].iloc[0], ha="center", va="center", color="white", weight="bold")
        _cloud(cell, part)
        cell.set_title(f"costates at {place}")
    small[0].legend(loc="best", markerscale=2.5)
    return figure


def _map(ax: "Axes", field: pd.DataFrame, axis_names: tuple[str, str]) -> None:
    """Filled contours of the value from mid grey to white, and its gradient as arrows."""
    grid = field.pivot(index="y", columns="x", values="V")
    low, high = grid.to_numpy().min(), grid.to_numpy().max()
    shade = ax.contourf(
        grid.columns,
        grid.index,
        grid,
        levels=14,
        cmap="Greys_r",
        vmin=low - 0.8 * (high - low),
        vmax=high,
        zorder=0,
    )
    ax.figure.colorbar(shade, ax=ax, label="value $V_0$")
    reach = field[["x", "y"]].to_numpy().max(0)
    arrow = field[["v_x", "v_y"]].to_numpy() * reach
    length = np.linalg.norm(arrow, axis=1, keepdims=True)
    arrow = arrow / (length + 0.25 * length.max())  # long ones shortened, so that short ones are seen
    ax.quiver(field["x"], field["y"], *arrow.T, color=BLUE, alpha=0.85, scale=19, width=0.005)
    ax.set(
        title="the value (shading) and its gradient $g_0$ (arrows)",
        xlabel=axis_names[0],
        ylabel=axis_names[1],
    )
    ax.grid(visible=False)


def _cloud(ax: "Axes", part: pd.DataFrame) -> None:
    """Single costates of two estimators, the mean of each and the value gradient."""
    for kind, colour in (("score function", SKY), ("pathwise", VERMILION)):
        v = part[part["kind"] == kind]
        ax.plot(
            v["v_x"], v["v_y"], ".", color=colour, ms=3, alpha=0.6, mew=0, label=f"{kind}, single", zorder=2
        )
    for kind, colour, edge in (("score function", BLUE, "white"), ("pathwise", VERMILION, "white")):
        v = part.loc[part["kind"] == kind, ["v_x", "v_y"]].mean()
        ax.plot(*v, "o", color=colour, mec=edge, ms=9, label=f"{kind}, mean", zorder=4)
    truth = part[part["kind"] == "value gradient"]
    ax.plot(truth["v_x"], truth["v_y"], "+", color=BLACK, ms=18, mew=2, label="value gradient", zorder=5)
    score = part[part["kind"] == "score function"]
    for axis, name in (("x", "v_x"), ("y", "v_y")):
        low, high = score[name].quantile([0.01, 0.99])
        getattr(ax, f"set_{axis}lim")(low, high)
    ax.set(xlabel="angle entry", ylabel="velocity entry")


def averages(table: pd.DataFrame) -> "Figure":
    """Error of a mean of n costates against n, one colour an estimator, on lines of slope -1/2.

    ``table`` has the columns ``estimator, n, rms, standard error, slope, low, high``; the last three, the fitted slope
    and its 95 % interval, are alike within an estimator.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.8)
    for (name, part), colour in zip(table.groupby("estimator", sort=False), (BLUE, VERMILION), strict=True):
        n, rms, fit = part["n"].to_numpy(), part["rms"].to_numpy(), part.iloc[-1]
        ax.errorbar(n, rms, 2 * part["standard error"], fmt="o", color=colour)
        middle = np.exp(np.log(n).mean())
        ax.plot(n, np.exp(np.log(rms).mean()) * (n / middle) ** -0.5, color=colour, lw=1)
        text = f"{name}\nslope {fit.slope:.3f} [{fit.low:.3f}, {fit.high:.3f}]".replace("-0", f"{_MINUS}0")
        ax.annotate(text, (n[-1], rms[-1]), (10, -9), textcoords="offset points", color=colour, fontsize=9)
    sizes = table["n"].unique()
    ax.set(
        title="Both means close in like $n^{-1/2}$ (lines: slope exactly $-1/2$)",
        xscale="log",
        yscale="log",
        xlabel="costates averaged, $n$",
        ylabel=r"rms distance from $g_0$",
        xlim=(sizes[0] / 1.4, sizes[-1] * 30),
    )
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    return figure


def interchange(jump: pd.DataFrame, bound: pd.DataFrame) -> "Figure":
    """Where the mean costate is not the slope of the value: left a jump, right functions without an integrable bound.

    ``jump`` has the columns ``s, slope, costate, score, error`` (two standard errors); ``bound`` has
    ``s, slope, costate``, with one row at s = 0.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.9)
    left.plot(jump["s"], jump["slope"], color=BLUE, lw=2)
    left.errorbar(jump["s"], jump["score"], jump["error"], fmt="o", color=GREEN, ms=5)
    left.plot(jump["s"], jump["costate"], "s-", color=VERMILION, lw=1, ms=5)
    peak = jump["slope"].max()
    left.annotate("slope of the value", (jump["s"].min(), 0.97 * peak), color=BLUE)
    left.annotate("mean score-function costate", (jump["s"].min(), 0.87 * peak), color=GREEN)
    left.annotate("mean pathwise costate: 0", (jump["s"].min(), 0.05 * peak), color=VERMILION)
    left.set(title="A reward that jumps", xlabel="state $s$", ylabel="slope")
    rest, at = bound[bound["s"] != 0], bound[bound["s"] == 0]
    right.plot(rest["s"], rest["slope"], color=BLUE, lw=2)
    right.plot(rest["s"], rest["costate"], "s", color=VERMILION, ms=4)
    right.plot(at["s"], at["slope"], "o", color=BLUE, ms=8)
    right.plot(at["s"], at["costate"], "s", color=VERMILION, ms=8)
    right.annotate(
        "slope of the value at 0", at[["s", "slope"]].iloc[0], (12, 3), textcoords="offset points", color=BLUE
    )
    right.annotate(
        "mean costate at 0",
        at[["s", "costate"]].iloc[0],
        (12, -3),
        textcoords="offset points",
        color=VERMILION,
    )
    right.set(
        title="A smooth reward without an integrable bound",
        xlabel="state $s$",
        ylabel="slope",
        ylim=(-0.1, 1.15),
    )
    return figure
