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

_COLOURS = {
    "SF": VERMILION,
    "SF, best baseline": ORANGE,
    "SF, to go": ORANGE,
    "PD": BLUE,
}


def tangents(curves: pd.DataFrame, slopes: pd.DataFrame, *, at: float, reach: float = 0.8) -> "Figure":
    """Each signal, its smoothed objective J, and the tangents at mu = ``at`` whose slopes the estimators found.

    ``curves`` has the columns ``signal, mu, phi, J``, a row per point of a grid that holds ``at``; ``slopes`` has
    ``signal, estimator, mean``. A tangent extends ``reach`` to either side. A panel's title says whether both touch.
    """
    signals = curves["signal"].unique()
    figure, axes = panels(1, len(signals), width=10.4, height=3.1)
    for ax, signal in zip(axes, signals, strict=True):
        part = curves[curves["signal"] == signal]
        height = part.loc[(part["mu"] - at).abs().idxmin(), "J"]
        ax.plot(part["mu"], part["phi"], color=GREY, lw=1.0)
        ax.plot(part["mu"], part["J"], color=BLACK, lw=2)
        found = slopes[slopes["signal"] == signal].set_index("estimator")["mean"]
        for kind, width, order in (("PD", 6, 3), ("SF", 2, 4)):
            near = np.array([at - reach, at + reach])
            line = height + found[kind] * (near - at)
            ax.plot(
                near, line, color=_COLOURS[kind], lw=width, alpha=0.45 if kind == "PD" else 1, zorder=order
            )
        ax.plot(at, height, "o", color=BLACK, zorder=5, ms=6)
        touch = abs(found["PD"] - found["SF"]) < 0.1 * max(abs(found))
        ax.set_title(f"{signal}: {'both slopes touch' if touch else 'PD misses the slope'}")
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.3 * (high - low), high)
        for kind, x, side in (("SF", 0.03, "left"), ("PD", 0.97, "right")):
            said = f"{kind} {found[kind]:.2f}"
            ax.annotate(said, (x, 0.05), xycoords="axes fraction", color=_COLOURS[kind], ha=side)
        ax.set_xlabel(r"$\mu$ (or $a$)")
        if signal == "kink":
            middle = part.iloc[(part["mu"]).abs().argmin()]
            where = {"textcoords": "offset points", "ha": "center"}
            ax.annotate(r"$J(\mu)$", (0, middle["J"]), (0, 7), **where)
            ax.annotate(r"$\varphi(a)$", (0, middle["phi"]), (0, -14), color="0.45", **where)
    return figure


def narrowing(table: pd.DataFrame, *, n: int) -> "Figure":
    """Mean of difference quotients over ``n`` samples along their width, in units of the true gradient.

    ``table`` has the columns ``signal, width, share, error`` for the signals "step" and "kink"; ``error`` is one
    standard error.
    """
    figure, ax = panels(1, 1, width=7.2, height=3.4)
    ax.axhline(1, color=GREY, lw=1)
    ax.axhline(0, color=GREY, lw=1)
    for signal, colour, marker, shift in (("kink", GREEN, "s", 1.12), ("step", VERMILION, "o", 1.0)):
        rows = table[table["signal"] == signal]
        x = rows["width"] * shift
        ax.errorbar(x, rows["share"], 2 * rows["error"], fmt=marker, color=colour, capsize=2)
    ax.set(
        xscale="log",
        ylim=(-0.75, 2.75),
        xlabel=r"half-width $h$ of the difference",
        ylabel="share of the gradient found",
    )
    ax.invert_xaxis()
    last = table["width"].min()
    ax.annotate(
        "the true gradient", (table["width"].max(), 1), (0, 5), textcoords="offset points", color="0.4"
    )
    ax.annotate(
        "kink $|a|$: right at any width",
        (last, 1),
        (0, 9),
        textcoords="offset points",
        color=GREEN,
        ha="right",
    )
    ax.annotate(
        "step: no sample sees the jump",
        (last, 0),
        (0, -15),
        textcoords="offset points",
        color=VERMILION,
        ha="right",
    )
    ax.set_ylim(min(-0.7, ax.get_ylim()[0]), max(2.2, ax.get_ylim()[1]))
    ax.set_title(f"Average first, then narrow: right. Narrow first: zero. ({n} samples)")
    return figure


def curvature(exact: pd.DataFrame, sampled: pd.DataFrame, *, at: float, here: dict[str, float]) -> "Figure":
    """Variance of one sample along the wave's frequency: exact lines, sampled dots, a band a winner.

    ``exact`` has the columns ``omega, SF, PD``; ``sampled`` has ``omega, estimator, variance, standard error``. The
    two variances ``here`` at the frequency ``at`` are written out.
    """
    figure, ax = panels(1, 1, width=7.2, height=3.8)
    for kind in ("SF", "PD"):
        ax.plot(exact["omega"], exact[kind], color=_COLOURS[kind], lw=2)
        rows = sampled[sampled["estimator"] == kind]
        _points(ax, rows["omega"], rows["variance"], rows["standard error"], _COLOURS[kind])
        _label(ax, exact["omega"].iloc[-1], exact[kind].iloc[-1], kind, _COLOURS[kind])
    crossing = exact.loc[(exact["PD"] > exact["SF"]).idxmax(), "omega"]
    ax.axvspan(exact["omega"].min(), crossing, color=BLUE, alpha=0.08, lw=0)
    ax.axvspan(crossing, exact["omega"].max(), color=VERMILION, alpha=0.08, lw=0)
    ax.set(
        xscale="log", yscale="log", xlabel=r"frequency $\omega$ of the wave", ylabel="variance of one sample"
    )
    top = ax.get_ylim()[1]
    ax.set_ylim(None, 5 * top)
    below = {"textcoords": "offset points", "va": "top"}
    ax.annotate("pathwise varies less", (exact["omega"].min(), 4 * top), (6, 0), color=BLUE, **below)
    ax.annotate("score function varies less", (crossing, 4 * top), (6, 0), color=VERMILION, **below)
    near = exact.iloc[(exact["omega"] - at).abs().argmin()]
    said = rf"at $\omega = {at:g}$: PD {here['PD']:.2f}, SF {here['SF']:.2f}"
    low = (at * 1.3, 10 ** (np.log10(ax.get_ylim()).mean() - 1.5))
    ax.annotate(said, (at, min(near["SF"], near["PD"])), low, arrowprops={"arrowstyle": "-", "color": "0.4"})
    ax.set_xlim(exact["omega"].min() / 1.1, exact["omega"].max() * 1.35)
    ax.set_title("On a smooth wave, curvature decides which estimator varies less")
    return figure


def variance(by_dimension: pd.DataFrame, by_noise: pd.DataFrame) -> "Figure":
    """Total variance of one sample of each estimator: along the dimension (left) and along the noise scale (right).

    Both tables have the columns ``dimension, sigma, estimator, exact, variance, standard error``, the first with a
    single sigma and the second with a single dimension.
    """
    figure, axes = panels(1, 2, width=9.2, height=3.8, sharey=True)
    sigma, d = by_dimension["sigma"].iloc[0], by_noise["dimension"].iloc[0]
    for ax, table, key, label in (
        (axes[0], by_dimension, "dimension", rf"dimension $d_a$   (at $\sigma = {sigma:g}$)"),
        (axes[1], by_noise, "sigma", rf"noise scale $\sigma$   (at $d_a = {d}$)"),
    ):
        for kind in ("SF", "SF, best baseline", "PD"):
            rows = table[table["estimator"] == kind]
            ax.plot(rows[key], rows["exact"], color=_COLOURS[kind])
            _points(ax, rows[key], rows["variance"], rows["standard error"], _COLOURS[kind])
            _label(ax, rows[key].iloc[-1], rows["exact"].iloc[-1], kind.replace(", ", ",\n"), _COLOURS[kind])
        ticks = table[key].unique()
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False)
        ax.set_xlim(ticks[0] / 1.15, ticks[-1] * (ticks[-1] / ticks[0]) ** 0.36)
    axes[0].set_ylabel("total variance of one sample")
    figure.suptitle("On the bowl the pathwise estimator varies less, everywhere", fontsize=11)
    return figure


def baseline(table: pd.DataFrame, *, title: str) -> "Figure":
    """Variance of SF along a constant baseline, with the named baselines marked and PD's variance for comparison.

    ``table`` has the columns ``baseline, SF, PD, mark``; a row with an empty ``mark`` is a point of the curve.
    """
    figure, ax = panels(1, 1, width=5.8, height=3.6)
    curve, marked = table[table["mark"] == ""], table[table["mark"] != ""]
    for kind in ("SF", "PD"):
        ax.plot(curve["baseline"], curve[kind], color=_COLOURS[kind])
    left, right = curve["baseline"].iloc[[0, -1]]
    where = {"textcoords": "offset points"}
    ax.annotate("PD", (left, curve["PD"].iloc[0]), (2, 4), color=_COLOURS["PD"], **where)
    ax.annotate("SF", (right, curve["SF"].iloc[-1]), (-8, 0), color=_COLOURS["SF"], ha="right", **where)
    offsets, colours = ((-34, 14), (26, 34), (-30, 46)), ("0.4", GREEN, BLACK)
    for (_, row), offset, colour in zip(marked.iterrows(), offsets, colours, strict=True):
        ax.plot(row["baseline"], row["SF"], "o", color=colour)
        arrow = {"arrowstyle": "-", "color": colour, "lw": 0.6}
        said, at = f"{row['mark']}: {row['SF']:.0f}", (row["baseline"], row["SF"])
        ax.annotate(said, at, offset, color=colour, ha="center", arrowprops=arrow, **where)
    ax.set(xlabel="constant baseline $b$", ylabel="total variance of one sample", title=title)
    ax.set_ylim(0, None)
    return figure


def stiff(exact: pd.DataFrame, sampled: pd.DataFrame, titles: dict[float, str]) -> "Figure":
    """Exact variance of three estimators along the horizon, one panel a gain, with the sampled ones as dots.

    ``exact`` has the columns ``gain, estimator, horizon, variance``; ``sampled`` adds ``standard error``. ``titles``
    says what each gain shows.
    """
    names = {"PD": "PD", "SF": "SF, whole\nreturn", "SF, to go": "SF, to go,\nbaseline"}
    figure, axes = panels(1, len(titles), width=10.4, height=3.7)
    for ax, (gain, title) in zip(axes, titles.items(), strict=True):
        last = exact[exact["gain"] == gain].groupby("estimator")["variance"].last()
        close = np.log(last["SF"] / last["SF, to go"]) < np.log(last.max() / last.min()) / 8
        said = names | {"SF": "both SF", "SF, to go": ""} if close else names
        for kind, name in said.items():
            rows = exact[(exact["gain"] == gain) & (exact["estimator"] == kind)]
            dots = sampled[(sampled["gain"] == gain) & (sampled["estimator"] == kind)]
            ax.plot(rows["horizon"], rows["variance"], color=_COLOURS[kind], lw=2)
            _points(ax, dots["horizon"], dots["variance"], dots["standard error"], _COLOURS[kind])
            _label(ax, rows["horizon"].iloc[-1], rows["variance"].iloc[-1], name, _COLOURS[kind])
        ax.set(title=rf"gain $\chi = {gain:g}$: {title}", xlabel="horizon $T$ (steps)", yscale="log")
        ax.set_xticks(rows["horizon"].unique())
        ax.set_xlim(None, exact["horizon"].max() * 1.4)
    axes[0].set_ylabel("variance of one rollout (scales differ)")
    return figure


def growth(table: pd.DataFrame) -> "Figure":
    """Growth per step of the mean and of the typical squared sensitivity along the gain; above zero it explodes.

    ``table`` has the columns ``gain, mean_square, typical``.
    """
    figure, ax = panels(1, 1, width=6.6, height=3.6)
    starts = [table.loc[(table[kind] > 0).idxmax(), "gain"] for kind in ("mean_square", "typical")]
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.axvspan(*starts, color=ORANGE, alpha=0.2, lw=0)
    for kind, colour, name in (
        ("mean_square", BLUE, "mean square\n(the variance)"),
        ("typical", "0.4", "typical square\n(chaos)"),
    ):
        ax.plot(table["gain"], table[kind], color=colour, lw=2)
        _label(ax, table["gain"].iloc[-1], table[kind].iloc[-1], name, colour)
    middle = sum(starts) / 2
    ax.annotate("explodes\nwithout\nchaos", (middle, table["typical"].min()), ha="center", color="0.25")
    ax.set(xlabel=r"gain $\chi$ of the sine map", ylabel="log growth per step")
    ax.set_xlim(table["gain"].min(), table["gain"].max() * 1.32)
    ax.set_ylim(None, 2.7)
    ax.set_xticks([1, 2, 3, 4])
    ax.set_title("The pathwise variance explodes before the map is chaotic")
    return figure


def _points(ax: "Axes", x: pd.Series, y: pd.Series, error: pd.Series, colour: str) -> None:
    """Measured values with bars of two standard errors."""
    ax.errorbar(x, y, 2 * error, fmt="o", color=colour, capsize=2)


def _label(ax: "Axes", x: float, y: float, text: str, colour: str, *, rise: float = 0) -> None:
    """The name of a curve to the right of its last point."""
    ax.annotate(text, (x, y), (7, rise), textcoords="offset points", color=colour, va="center")
