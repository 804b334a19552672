"""The figures of notebook 01: tangents by both gradient estimators, and their variances.

SF is the score-function estimator (2) and PD the pathwise one (3), in the same two colours throughout. Each function
takes the table it draws and returns the figure; the notebook's caption says which toy it comes from.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"SF": VERMILION, "SF, best baseline": ORANGE, "PD": BLUE}


def tangents(curves: pd.DataFrame, slopes: pd.DataFrame, *, at: float, reach: float = 0.9) -> "Figure":
    """Each signal, its smoothed objective J, and the tangents at mu = ``at`` whose slopes the estimators found.

    ``curves`` has the columns ``signal, mu, phi, J``, a row per point of a grid that holds ``at``; ``slopes`` has
    ``signal, estimator, mean``. A tangent extends ``reach`` to either side.
    """
    signals = curves["signal"].unique()
    figure, axes = panels(1, len(signals), width=9.6, height=3.6)
    near = np.array([at - reach, at + reach])
    for ax, signal in zip(axes, signals, strict=True):
        part = curves[curves["signal"] == signal]
        height = part.loc[(part["mu"] - at).abs().idxmin(), "J"]
        ax.plot(part["mu"], part["phi"], color=GREY, lw=1.2, label=r"signal $\varphi$")
        ax.plot(part["mu"], part["J"], color=BLACK, label="objective $J$")
        for kind, style in (("SF", "-"), ("PD", (0, (4, 2)))):
            found = slopes[(slopes["signal"] == signal) & (slopes["estimator"] == kind)]
            line = height + found["mean"].item() * (near - at)
            ax.plot(near, line, color=_COLOURS[kind], ls=style, lw=2.4, label=f"tangent by {kind}")
        ax.plot(at, height, "o", color=BLACK)
        ax.set(title=signal, xlabel=r"action $a$ or location $\mu$", ylabel=r"$\varphi(a)$ or $J(\mu)$")
    figure.suptitle(rf"Slope of $J$ at $\mu = {at:g}$ as the two estimators see it", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def variance(by_dimension: pd.DataFrame, by_noise: pd.DataFrame) -> "Figure":
    """Total variance of one sample of each estimator: along the dimension (left) and along the noise scale (right).

    Both tables have the columns ``dimension, sigma, estimator, exact, variance, standard error``, the first with a
    single sigma and the second with a single dimension.
    """
    figure, axes = panels(1, 2, width=9.2, height=3.8, sharey=True)
    sigma, d = by_dimension["sigma"].iloc[0], by_noise["dimension"].iloc[0]
    for ax, table, key, label in (
        (axes[0], by_dimension, "dimension", rf"dimension $d$   (at $\sigma = {sigma:g}$)"),
        (axes[1], by_noise, "sigma", rf"noise scale $\sigma$   (at $d = {d}$)"),
    ):
        for kind, colour in _COLOURS.items():
            rows = table[table["estimator"] == kind]
            ax.plot(rows[key], rows["exact"], color=colour)
            _points(ax, rows[key], rows["variance"], rows["standard error"], colour)
            _label(ax, rows[key].iloc[-1], rows["exact"].iloc[-1], kind.replace(", ", ",\n"), colour)
        ticks = table[key].unique()
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False)
        ax.set_xlim(ticks[0] / 1.15, ticks[-1] * (ticks[-1] / ticks[0]) ** 0.36)
    axes[0].set_ylabel("total variance of one sample")
    figure.suptitle("Variance on the bowl: lines exact, dots measured (bars: 2 s.e.)", fontsize=11)
    return figure


def baseline(table: pd.DataFrame, *, title: str) -> "Figure":
    """Variance of SF along a constant baseline, with the named baselines marked and PD's variance for comparison.

    ``table`` has the columns ``baseline, SF, PD, mark``; a row with an empty ``mark`` is a point of the curve.
    """
    figure, ax = panels(1, 1, width=5.8, height=3.6)
    curve, marked = table[table["mark"] == ""], table[table["mark"] != ""]
    ax.plot(curve["baseline"], curve["SF"], color=_COLOURS["SF"])
    ax.plot(curve["baseline"], curve["PD"], color=_COLOURS["PD"])
    left, right = curve["baseline"].iloc[[0, -1]]
    ax.annotate("PD", (left, curve["PD"].iloc[0]), (2, 4), textcoords="offset points", color=_COLOURS["PD"])
    ax.annotate(
        "SF",
        (right, curve["SF"].iloc[-1]),
        (-8, 0),
        textcoords="offset points",
        color=_COLOURS["SF"],
        ha="right",
    )
    offsets, colours = ((-34, 14), (26, 34), (-30, 46)), ("0.4", GREEN, BLACK)
    for (_, row), offset, colour in zip(marked.iterrows(), offsets, colours, strict=True):
        ax.plot(row["baseline"], row["SF"], "o", color=colour)
        arrow = {"arrowstyle": "-", "color": colour, "lw": 0.6}
        where = (row["baseline"], row["SF"])
        ax.annotate(
            f"{row['mark']}: {row['SF']:.0f}",
            where,
            offset,
            textcoords="offset points",
            color=colour,
            ha="center",
            arrowprops=arrow,
        )
    ax.set(xlabel="constant baseline $b$", ylabel="total variance of one sample", title=title)
    ax.set_ylim(0, None)
    return figure


def stiff(table: pd.DataFrame, names: dict[float, str], *, rate: float) -> "Figure":
    """Variance of both estimators along the horizon, one panel a gain, and a line that grows by exp(rate) a step.

    ``table`` has the columns ``gain, T, SF, SF s.e., PD, PD s.e.``; ``names`` says what each gain stands for. The
    line stands in the last panel.
    """
    figure, axes = panels(1, len(names), width=9.6, height=3.8, sharey=True)
    for ax, (gain, name) in zip(axes, names.items(), strict=True):
        rows = table[table["gain"] == gain]
        above = max(("SF", "PD"), key=lambda kind: rows[kind].iloc[-1])
        for kind in ("SF", "PD"):
            ax.plot(rows["T"], rows[kind], color=_COLOURS[kind])
            _points(ax, rows["T"], rows[kind], rows[f"{kind} s.e."], _COLOURS[kind])
            shift = 4 if kind == above else -4
            _label(ax, rows["T"].iloc[-1], rows[kind].iloc[-1], kind, _COLOURS[kind], rise=shift)
        ax.set(title=rf"{name}, $\kappa = {gain:g}$", xlabel="horizon $T$ (steps)", yscale="log")
        ax.set_xticks(rows["T"].unique())
        ax.set_xlim(rows["T"].min() - 0.7, rows["T"].max() + 2.4)
    T = rows["T"].iloc[[1, -2]].to_numpy()
    line = 8 * rows["PD"].iloc[1] * np.exp(rate * (T - T[0]))
    ax.plot(T, line, color=GREY, lw=1.2)
    middle = (T.mean(), np.sqrt(line.prod()))
    ax.annotate(r"$(\kappa^2/2)^{\,T}$", middle, (-6, 2), textcoords="offset points", color="0.4", ha="right")
    axes[0].set_ylabel("variance of one trajectory")
    figure.suptitle("Variance along the horizon: dots measured (bars: 2 s.e.)", fontsize=11)
    return figure


def _points(ax: "Axes", x: pd.Series, y: pd.Series, error: pd.Series, colour: str) -> None:
    """Measured values with bars of two standard errors."""
    ax.errorbar(x, y, 2 * error, fmt="o", color=colour, capsize=2)


def _label(ax: "Axes", x: float, y: float, text: str, colour: str, *, rise: float = 0) -> None:
    """The name of a curve to the right of its last point."""
    ax.annotate(text, (x, y), (7, rise), textcoords="offset points", color=colour, va="center")
