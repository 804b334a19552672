"""The figures of notebook 02: routes to a costate compared, planted slips, Riccati slopes, averages, value fields.

Each function takes the table it draws, one row per number, and returns the figure; which task was measured is said by
the notebook's caption.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUND_OFF = 1e-17  # an error of zero gets this place on a logarithmic axis
_MINUS = "\u2212"


def pairwise(table: pd.DataFrame) -> "Figure":
    """Relative difference of each pair of routes to one quantity, as a power of ten: one panel per quantity.

    ``table`` has the columns ``quantity, route, other, relative error``, each pair once, in the order of the routes.
    """
    import seaborn as sns

    groups = list(table.groupby("quantity", sort=False))
    sizes = [part["route"].nunique() for _, part in groups]
    figure, axes = panels(1, len(groups), width=9.6, height=2.8, widths=sizes)
    for ax, (quantity, part) in zip(axes, groups, strict=True):
        power = part.assign(power=np.log10(part["relative error"].clip(lower=_ROUND_OFF)))
        block = power.pivot(index="other", columns="route", values="power")
        block = block.loc[part["other"].unique(), part["route"].unique()]
        written = block.map(lambda x: "" if np.isnan(x) else f"{x:.1f}".replace("-", _MINUS))
        sns.heatmap(block, annot=written, fmt="", cmap="cividis_r", vmin=-16, vmax=-9, cbar=False, ax=ax)
        ax.set(title=f"routes to {quantity}", xlabel="", ylabel="")
        ax.tick_params(length=0)
        ax.tick_params(axis="y", rotation=0)
        ax.grid(visible=False)
    figure.suptitle(r"$\log_{10}$ of the relative difference between two routes")
    return figure


def planted_errors(table: pd.DataFrame, *, tolerance: float) -> "Figure":
    """Relative error of each deliberate slip, one row each, beside the formula without a slip and the tolerance.

    ``table`` has the columns ``equation, slip, relative error``.
    """
    equations = list(table.groupby("equation", sort=False))
    heights = [len(part) for _, part in equations]
    figure, axes = panels(len(equations), 1, width=7.2, height=4.0, heights=heights, sharex=True)
    for ax, (equation, part) in zip(axes, equations, strict=True):
        errors = part["relative error"].clip(lower=_ROUND_OFF).to_numpy()
        colours = [BLUE if error < tolerance else VERMILION for error in errors]
        rows = np.arange(len(part))[::-1]
        ax.hlines(rows, _ROUND_OFF, errors, color=colours, lw=1)
        ax.scatter(errors, rows, color=colours, zorder=3)
        ax.axvline(tolerance, color=GREY, lw=1)
        ax.set_yticks(rows, part["slip"])
        ax.set(xscale="log", title=f"slips in {equation}", ylim=(-0.6, len(part) - 0.4))
        ax.grid(axis="y", visible=False)
    first = heights[0] - 1  # the row without a slip, whose line ends before the tolerance
    axes[0].annotate(
        "tolerance", (tolerance, first), (5, -3), textcoords="offset points", color="0.4", fontsize=9
    )
    axes[-1].set_xlabel("relative error against autograd")
    return figure


def riccati(table: pd.DataFrame) -> "Figure":
    """Slopes of the costate in the state: closed form (lines) and regression (marks); to the right their distance.

    ``table`` has the columns ``t, costate, state, slope, standard error, closed form``, the entries of one t being
    ``position`` and ``velocity``.
    """
    figure, (left, right) = panels(1, 2, width=10.0, height=3.7, widths=(1.1, 1))
    entries = (
        ("position", "position", BLUE, "o", "position, position", (7, (6, -9), "left")),
        ("position", "velocity", GREEN, "o", "mixed, both orders", (3, (-6, 6), "right")),
        ("velocity", "position", ORANGE, "x", "", None),
        ("velocity", "velocity", VERMILION, "o", "velocity, velocity", (1, (4, -11), "left")),
    )
    right.axhspan(-2, 2, color="0.92", lw=0)
    for shift, (costate, state, colour, marker, label, place) in zip(
        (-0.24, -0.08, 0.08, 0.24), entries, strict=True
    ):
        part = table[(table["costate"] == costate) & (table["state"] == state)].reset_index()
        left.plot(part["t"], part["closed form"], color=colour, lw=1.2, ls="--" if marker == "x" else "-")
        left.errorbar(part["t"], part["slope"], 2 * part["standard error"], fmt=marker, color=colour)
        z = (part["slope"] - part["closed form"]) / part["standard error"]
        right.plot(part["t"] + shift, z, marker, color=colour, label=f"{costate}, {state}")
        if place:
            at, offset, side = place
            left.annotate(
                label,
                (part["t"][at], part["closed form"][at]),
                offset,
                textcoords="offset points",
                color=colour,
                ha=side,
                fontsize=9,
            )
    steps = table["t"].unique()
    left.set(
        title="lines: closed form; marks: regression $\\pm$ 2 s.e.",
        xlabel="step $t$",
        ylabel="entry of $-2P_t$ (units: m, m/s)",
        xticks=steps,
    )
    right.set(
        title="how far the marks are from the lines (grey: 2 s.e.)",
        xlabel="step $t$",
        ylabel="distance in standard errors",
        xticks=steps,
        ylim=(-4.9, 4.9),
    )
    right.legend(ncols=2, loc="lower center", title="entry of $-2P_t$ (row, column)", title_fontsize=9)
    return figure


def averages(table: pd.DataFrame) -> "Figure":
    """Error of a mean of n costates against n, one colour per step; lines of slope -1/2 through the middle of each.

    ``table`` has the columns ``t, n, rms, standard error, slope, low, high``; the last three, the fitted slope and
    its 95 % interval, are alike within a step.
    """
    figure, ax = panels(1, 1, width=6.4, height=3.7)
    for (t, part), colour in zip(table.groupby("t"), (BLUE, GREEN, VERMILION), strict=True):
        n, rms, fit = part["n"].to_numpy(), part["rms"].to_numpy(), part.iloc[-1]
        ax.errorbar(n, rms, 2 * part["standard error"], fmt="o", color=colour)
        middle = np.exp(np.log(n).mean())
        ax.plot(n, np.exp(np.log(rms).mean()) * (n / middle) ** -0.5, color=colour, lw=1)
        text = f"$t = {t}$: slope {fit.slope:.3f}\n[{fit.low:.3f}, {fit.high:.3f}]".replace("-", _MINUS)
        ax.annotate(text, (n[-1], rms[-1]), (10, -9), textcoords="offset points", color=colour, fontsize=9)
    sizes = table["n"].unique()
    ax.set(
        title="dots: measured $\\pm$ 2 s.e.; lines: slope exactly $-1/2$; text: fitted slope [95 %]",
        xscale="log",
        yscale="log",
        xlabel="costates averaged, $n$",
        ylabel=r"rms error $\|\bar\lambda_t - g_t\|$",
        xlim=(sizes[0] / 1.4, sizes[-1] * 9),
    )
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.minorticks_off()
    return figure


def arrows(
    task: str,
    kind: str,
    states: Float[Tensor, "points 2"],
    vectors: Float[Tensor, "points 2"],
    values: Float[Tensor, " points"] | None = None,
) -> pd.DataFrame:
    """Rows for :func:`value_fields`: ``kind`` is ``field`` (with ``values``) or ``costate`` (without)."""
    columns = {"x": states[:, 0], "y": states[:, 1], "V": values, "v_x": vectors[:, 0], "v_y": vectors[:, 1]}
    numbers = {name: np.nan if column is None else column.numpy() for name, column in columns.items()}
    return pd.DataFrame({"task": task, "kind": kind, **numbers})


def value_fields(table: pd.DataFrame, axis_names: dict[str, tuple[str, str]]) -> "Figure":
    """Value (shading), its gradient (small arrows) and single costates with their mean, one panel per task.

    ``table`` has the columns ``task, kind, x, y, V, v_x, v_y`` (see :func:`arrows`); ``axis_names`` names the axes of
    each task. Arrows are drawn in units of the axes, so that they point where they point on the page.
    """
    from matplotlib.lines import Line2D

    figure, axes = panels(1, len(axis_names), width=10.0, height=4.6)
    for ax, (task, names) in zip(axes, axis_names.items(), strict=True):
        field, single = (table[(table["task"] == task) & (table["kind"] == k)] for k in ("field", "costate"))
        reach = field[["x", "y"]].to_numpy().max(0)
        shade = _shading(ax, field)
        figure.colorbar(shade, ax=ax, label="value $V_0$")
        arrow = field[["v_x", "v_y"]].to_numpy() * reach
        length = np.linalg.norm(arrow, axis=1, keepdims=True)
        arrow = arrow / (length + 0.25 * length.max())  # long ones shortened, so that short ones are seen
        ax.quiver(field["x"], field["y"], *arrow.T, color=BLUE, alpha=0.8, scale=23, width=0.0035)
        for spot, cloud in single.groupby(["x", "y"]):
            _costates(ax, spot, cloud[["v_x", "v_y"]].to_numpy() * reach)
        ax.set(
            title=task,
            xlabel=names[0],
            ylabel=names[1],
            xlim=(-reach[0], reach[0]),
            ylim=(-reach[1], reach[1]),
        )
        ax.grid(visible=False)
    kinds = (
        (BLUE, 1, "field of $g_0$"),
        (VERMILION, 1, "single costates $\\lambda_0$"),
        (BLACK, 2.5, "their mean"),
    )
    handles = [Line2D([], [], color=colour, lw=width, label=label) for colour, width, label in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _shading(ax: "Axes", field: pd.DataFrame):
    """Filled contours of the value, from mid grey to white: the darkest third of the map stays free for arrows."""
    grid = field.pivot(index="y", columns="x", values="V")
    low, high = grid.to_numpy().min(), grid.to_numpy().max()
    floor = low - 0.8 * (high - low)
    return ax.contourf(
        grid.columns, grid.index, grid, levels=14, cmap="Greys_r", vmin=floor, vmax=high, zorder=0
    )


def _costates(ax: "Axes", spot: tuple[float, float], cloud: np.ndarray) -> None:
    """Single costates at one state and their mean, all on the scale of the single ones' root mean square."""
    size = 7 * np.sqrt((cloud**2).sum(1).mean())
    x, y = (np.full(len(cloud), z) for z in spot)
    ax.quiver(x, y, *(cloud / size).T, color=VERMILION, alpha=0.6, scale=1, width=0.0025)
    ax.quiver(*spot, *(cloud.mean(0) / size), color=BLACK, scale=1, width=0.007, zorder=5)
