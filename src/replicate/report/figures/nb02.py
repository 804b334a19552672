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
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, panels
from replicate.statistics.agreement import relative_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MINUS = "\u2212"
_SCORE_MEAN = {"mec": VERMILION, "mfc": "none", "mew": 2, "ms": 15}
_PATHWISE_MEAN = {"mec": "white", "mfc": BLUE, "ms": 9}
_TRUTH = {"color": BLACK, "mew": 2, "ms": 12}


def written(table: pd.DataFrame, form: str) -> str:
    """``table``, words before numbers, as Markdown: numbers between backquotes, in ``form`` unless they are whole."""
    numbers = table.select_dtypes("number").columns
    broken = table.select_dtypes("float").columns
    forms = {name: form if name in broken else "{}" for name in numbers}
    shown = table.assign(**{name: [f"`{how.format(x)}`" for x in table[name]] for name, how in forms.items()})
    rows = (markdown.row(*(str(cell) for cell in row)) for row in shown.itertuples(index=False))
    return markdown.head(*table, numbers=len(numbers)) + "\n".join(rows)


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
            text = f"{error:.0f} %" if error > 1e-3 else "0 (to ten digits or more)"
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
    figure.suptitle("Without a slip the error is nil, and every slip is seen", x=0.01, ha="left", fontsize=11)
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
    left.annotate("single costates", (0.04, 0.93), xycoords="axes fraction", color="0.4")
    left.annotate("their means in bins", (0.04, 0.86), xycoords="axes fraction", color=BLUE)
    left.annotate("equality", (0.04, 0.79), xycoords="axes fraction", color=BLACK)
    spread = np.abs(some["costate"]).quantile(0.99)
    left.set(
        title="One costate scatters; the mean is the value gradient",
        xlabel=r"value gradient $g_0(s)$ in closed form (position entry)",
        ylabel=r"costate $\lambda_0$ of one trajectory",
        xlim=tuple(ends),
        ylim=(-spread, spread),
    )
    last = slopes["t"].max()
    ends = slopes[slopes["t"] == last].set_index("entry")["closed form"].sort_values()
    heights = _spread(ends.to_numpy(), 0.06 * np.ptp(slopes["closed form"]))
    for (entry, part), colour in zip(
        slopes.groupby("entry", sort=False), (BLUE, GREEN, VERMILION), strict=True
    ):
        right.plot(part["t"], part["closed form"], color=colour, lw=1.2)
        right.errorbar(part["t"], part["slope"], 2 * part["standard error"], fmt="o", color=colour)
        height = heights[ends.index.get_loc(entry)]
        right.annotate(entry, (last, height), (8, 0), textcoords="offset points", color=colour, va="center")
    right.set(
        title=r"At every step the fitted slope (dots) is $-2\mathbf{P}_t$ (lines)",
        xlabel="step $t$",
        ylabel=r"entry of $-2\mathbf{P}_t$ (reward per m, m/s)",
        xlim=(-0.4, 1.45 * last + 0.5),
        xticks=range(0, last + 1, 1 + last // 12),
    )
    return figure


def _spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending ``heights`` moved apart until neighbours are ``gap`` apart, up and down alike at the top."""
    moved = heights.copy()
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + gap)
    return moved - (moved[-1] - heights[-1]) / 2


def value_field(field: pd.DataFrame, clouds: pd.DataFrame, axis_names: tuple[str, str]) -> "Figure":
    """A map of the value with its gradient, and at the places marked on it the costates that two estimators draw.

    ``field`` has the columns ``x, y, V, v_x, v_y``; ``clouds`` has ``place, x, y, kind, v_x, v_y`` with the kinds
    ``score function``, ``pathwise``, ``value gradient`` (one row a place). Arrows are drawn in units of the axes.
    """
    figure, axes = panels(2, 2, width=9.6, height=7.4)
    ax, *small = axes.flat
    _map(ax, field, axis_names)
    for cell, (place, part) in zip(small, clouds.groupby("place", sort=False), strict=True):
        ax.plot(part["x"].iloc[0], part["y"].iloc[0], "o", color=BLACK, ms=16, mec="white")
        ax.annotate(place, part[["x", "y"]].iloc[0], ha="center", va="center", color="white", weight="bold")
        _cloud(cell, part)
        cell.set_title(f"{place}: two clouds, one centre")
    figure.legend(handles=_kinds(), loc="outside lower center", ncols=5)
    return figure


def _kinds() -> list:
    """What the marks of :func:`_cloud` are."""
    from matplotlib.lines import Line2D

    marks = (
        ("score function, single", ".", {"color": ORANGE, "ms": 7}),
        ("pathwise, single", ".", {"color": BLUE, "ms": 7}),
        ("score function, mean", "o", _SCORE_MEAN),
        ("pathwise, mean", "o", _PATHWISE_MEAN),
        ("value gradient", "+", _TRUTH),
    )
    return [Line2D([], [], ls="", marker=marker, label=label, **style) for label, marker, style in marks]


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
    ax.quiver(field["x"], field["y"], *arrow.T, color=GREEN, alpha=0.85, scale=19, width=0.005)
    ax.set(
        title="the value (shading) and its gradient $g_0$ (arrows)",
        xlabel=axis_names[0],
        ylabel=axis_names[1],
    )
    ax.grid(visible=False)


def _cloud(ax: "Axes", part: pd.DataFrame) -> None:
    """Single costates of two estimators, the mean of each and the value gradient."""
    kinds = (("score function", ORANGE, _SCORE_MEAN), ("pathwise", BLUE, _PATHWISE_MEAN))
    for order, (kind, colour, mean) in enumerate(kinds):
        v = part.loc[part["kind"] == kind, ["v_x", "v_y"]]
        ax.plot(v["v_x"], v["v_y"], ".", color=colour, ms=3, alpha=0.6, mew=0, zorder=2)
        ax.plot(*v.mean(), "o", zorder=4 + order, **mean)
    truth = part[part["kind"] == "value gradient"]
    ax.plot(truth["v_x"], truth["v_y"], "+", zorder=6, **_TRUTH)
    for axis, name in (("x", "v_x"), ("y", "v_y")):
        ends = part.groupby("kind")[name].quantile([0.01, 0.99])
        getattr(ax, f"set_{axis}lim")(ends.min(), ends.max())
    ax.locator_params(nbins=5)
    ax.set(xlabel="costate, angle entry", ylabel="costate, velocity entry")


def averages(table: pd.DataFrame) -> "Figure":
    """Error of a mean of n costates against n, one colour an estimator, on lines of slope -1/2.

    ``table`` has the columns ``estimator, n, rms, standard error, slope, low, high``; the last three, the fitted slope
    and its 95 % interval, are alike within an estimator.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.8)
    for (name, part), colour in zip(table.groupby("estimator", sort=False), (VERMILION, BLUE), strict=True):
        n, rms, fit = part["n"].to_numpy(), part["rms"].to_numpy(), part.iloc[-1]
        ax.errorbar(n, rms, 2 * part["standard error"], fmt="o", color=colour)
        middle = np.exp(np.log(n).mean())
        ax.plot(n, np.exp(np.log(rms).mean()) * (n / middle) ** -0.5, color=colour, lw=1)
        text = f"{name}\nslope {fit.slope:.3f} [{fit.low:.3f}, {fit.high:.3f}]".replace("-0", f"{_MINUS}0")
        ax.annotate(text, (n[-1], rms[-1]), (10, -9), textcoords="offset points", color=colour, fontsize=9)
    sizes = table["n"].unique()
    square = np.log(table.pivot(index="n", columns="estimator", values="rms")).mean()
    times = np.exp(2 * (square["score function"] - square["pathwise"]))
    ax.set(
        title=f"One slope, $-1/2$; the score function needs {times:.1f} times as many costates",
        xscale="log",
        yscale="log",
        xlabel="costates averaged, $n$",
        ylabel=r"rms distance from $g_0$",
        xlim=(sizes[0] / 1.4, sizes[-1] * 30),
    )
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    return figure


def interchange(jump: pd.DataFrame, bound: pd.DataFrame, curves: pd.DataFrame) -> "Figure":
    """Where the mean costate is not the slope of the value: left a jump, right functions without an integrable bound.

    ``jump`` has the columns ``s, costate, score, error`` (two standard errors); ``bound`` has ``s, costate``, with one
    row at s = 0; ``curves`` has ``task, s, slope`` with the tasks ``jump`` and ``bound``.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.9, sharey=False)
    for ax, task in ((left, "jump"), (right, "bound")):
        part = curves[curves["task"] == task]
        ax.plot(part["s"], part["slope"], color=BLACK)
        ax.set(
            xlabel="state $s$", ylabel="slope", ylim=(-0.08 * part["slope"].max(), 1.2 * part["slope"].max())
        )
    left.errorbar(jump["s"], jump["score"], jump["error"], fmt="o", color=VERMILION, ms=6)
    left.plot(jump["s"], jump["costate"], "s", color=BLUE, ms=6)
    labels = (
        ("slope of the value", BLACK),
        ("mean score-function costate", VERMILION),
        ("mean costate: zero", BLUE),
    )
    for height, (label, colour) in zip((0.93, 0.85, 0.11), labels, strict=True):
        left.annotate(label, (0.03, height), xycoords="axes fraction", color=colour)
    left.set_title("A reward that jumps: wrong at every state")
    at = bound["s"] == 0
    right.plot(bound["s"][~at], bound["costate"][~at], "s", color=BLUE, ms=6)
    right.plot(bound["s"][at], bound["costate"][at], "s", color=BLUE, ms=11)
    right.annotate(
        "mean costate at $s = 0$: zero",
        (0, 0),
        (0, 12),
        textcoords="offset points",
        color=BLUE,
        ha="center",
    )
    right.annotate("slope of the value", (0.03, 0.93), xycoords="axes fraction", color=BLACK)
    right.annotate("mean costate elsewhere", (0.03, 0.85), xycoords="axes fraction", color=BLUE)
    right.set_title("Differentiable, but no integrable bound: wrong at one")
    return figure
