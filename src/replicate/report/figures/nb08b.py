"""The figures of notebook 08b: absolute against relative error, estimates at equal samples, temperature, the ladder.

Each function takes the table it draws and returns the figure; the caption, which says what models were measured, is
the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION, jitter, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUNGS = {"before": "first rung", "climbing": "climbing", "after": "last rung"}
_ESTIMATES = {
    "score function": (BLUE, "score function"),
    "relaxed": (VERMILION, "soft tokens"),
    "Gumbel": (ORANGE, "Gumbel"),
}


def absolute_relative(table: pd.DataFrame) -> "Figure":
    """Heat maps of the absolute and the relative error over the entropies of the tokens in between (``mid``) and of
    the rewarded one (``last``): columns ``mid, last, error, relative``; one colour scale a panel."""
    from matplotlib.colors import LogNorm

    figure, axes = panels(1, 2, width=9.2, height=3.9, sharey=True)
    for ax, column, title in (
        (axes[0], "error", "absolute: small where the *rewarded* token is certain"),
        (axes[1], "relative", "relative: only the tokens *in between* matter"),
    ):
        grid = table.pivot(index="mid", columns="last", values=column)
        top = grid.to_numpy().max()
        image = ax.imshow(grid, norm=LogNorm(top / 1e4, top), cmap="viridis", origin="lower", aspect="auto")
        ax.set_xticks(range(grid.shape[1]), [f"{h:g}" for h in grid.columns], rotation=50)
        ax.set_yticks(range(grid.shape[0]), [f"{h:g}" for h in grid.index])
        ax.set(xlabel="entropy of the rewarded token (nats)")
        ax.set_title(title.replace("*", ""))
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax, extend="min")
    axes[0].set_ylabel("entropy in between (nats)")
    return figure


def bias_variance(curves: pd.DataFrame, crossings: dict[float, float]) -> "Figure":
    """Mean squared errors against the group size, a panel an entropy, with intervals: columns ``H, estimate, G, mean,
    low, high``. ``crossings`` has the median group from which on the score function is ahead of soft tokens."""
    levels = sorted(curves["H"].unique(), reverse=True)
    figure, axes = panels(1, len(levels), width=3.7 * len(levels), height=3.7, sharey=True)
    for ax, level in zip(axes, levels, strict=True):
        panel = curves[(curves["H"] == level) & curves["estimate"].isin(_ESTIMATES)]
        for name, part in panel.groupby("estimate", sort=False):
            ax.plot(part["G"], part["mean"], color=_ESTIMATES[name][0])
            ax.fill_between(part["G"], part["low"], part["high"], color=_ESTIMATES[name][0], alpha=0.13, lw=0)
        ax.axhline(1.0, color=BLACK, lw=0.8, ls=":")
        at = crossings[level]
        ax.axvline(at, color=GREY, lw=0.9)
        ax.annotate(f"crossing\n{at:.0f}", (at * 1.2, 0.97), xycoords=("data", "axes fraction"), fontsize=8.5,
                    color="0.35", va="top")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="completions a group")
        ax.set_title(f"{level:g} nats a token")
    ax = axes[-1]
    panel = curves[curves["H"] == levels[-1]]
    for name, where, shift in (("score function", 1, 8), ("relaxed", -1, 6), ("Gumbel", -1, 6)):
        part = panel[panel["estimate"] == name]
        row = part.iloc[len(part) // 3 if name == "score function" else where]
        ax.annotate(
            _ESTIMATES[name][1],
            (row["G"], row["mean"]),
            (shift, 0 if name != "score function" else 6),
            textcoords="offset points",
            color=_ESTIMATES[name][0],
            fontsize=9,
            va="center" if name != "score function" else "bottom",
            annotation_clip=False,
        )
    axes[1].annotate("the answer 0", (curves["G"].max(), 1.15), fontsize=8.5, color="0.3", ha="right")
    axes[0].set_ylabel("mean squared error / $\\|g\\|^2$")
    return figure


def temperature(table: pd.DataFrame, *, groups: tuple[int, ...], soft: float) -> "Figure":
    """Error of the mean of so many Gumbel rollouts (a line for each of ``groups``) against the temperature, and the
    squared bias that no number of them goes below: columns ``tau, bias, variance``. ``soft`` is
    that of soft tokens without noise. A bias that its own sampling error (column ``noise``) drowns is not drawn."""
    figure, ax = panels(1, 1, width=7.4, height=4.1)
    first, last = table["tau"].iloc[0], table["tau"].iloc[-1]
    for n, colour in zip(groups, (SKY, BLUE, BLACK), strict=False):
        y = table["bias"].clip(lower=0.0) + table["variance"] / n
        best = y.idxmin()
        ax.plot(table["tau"], y, color=colour, marker="o", ms=3.5)
        ax.plot(table["tau"][best], y[best], "o", ms=9, mfc="none", mec=colour, mew=1.6)
        name = "one rollout" if n == 1 else f"mean of {n}"
        ax.annotate(
            name,
            (first, y[0]),
            (-8, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            ha="right",
            va="center",
        )
    seen = table[table["bias"] > table["noise"]]
    ax.plot(seen["tau"], seen["bias"], "--", color=VERMILION)
    row = seen.iloc[len(seen) // 2]
    ax.annotate(
        "squared bias",
        (row["tau"], row["bias"]),
        (8, -12),
        textcoords="offset points",
        color=VERMILION,
        fontsize=9,
    )
    for height, text in ((soft, "soft tokens,\nno noise"), (1.0, "the answer 0")):
        ax.axhline(height, color=GREY, lw=0.9, ls=":" if height == 1 else "-")
        ax.annotate(
            text, (last * 1.2, height), color="0.35", fontsize=8.5, va="bottom" if height >= 1 else "top"
        )
    ax.set(xscale="log", yscale="log", xlim=(first / 2.6, last * 2.6))
    ax.set_xticks(table["tau"], [f"{t:g}" for t in table["tau"]])
    ax.minorticks_off()
    ax.set(
        xlabel="temperature of Gumbel-softmax (ring: the best of a line)",
        ylabel="mean squared error / $\\|g\\|^2$",
    )
    return figure


def along_ladder(table: pd.DataFrame) -> "Figure":
    """Squared bias of the relaxed costate and variance of one sample's score function on each rung, and how many
    samples make them equal: columns ``stage, bias, variance, crossing``; a dot a prompt, a bar the median."""
    figure, axes = panels(1, 2, width=9.4, height=3.8)
    stages = [stage for stage in _RUNGS if stage in set(table["stage"])]
    parts = [table[table["stage"] == stage] for stage in stages]
    for column, colour, name in (
        ("variance", BLUE, "variance, one sample"),
        ("bias", VERMILION, "squared bias, soft tokens"),
    ):
        _dots(axes[0], parts, column, colour, -0.12 if column == "variance" else 0.12)
        height = 0.94 if column == "variance" else 0.06
        axes[0].annotate(name, (0.03, height), xycoords="axes fraction", color=colour, fontsize=9)
    _dots(axes[1], parts, "crossing", BLACK, 0.0)
    for i, part in enumerate(parts):
        middle = part["crossing"].median()
        axes[1].annotate(
            f"{round(middle, 1 - int(np.log10(middle))):,.0f}", (i + 0.16, middle), fontsize=9, va="center"
        )
    axes[0].set(ylabel="in units of $\\|g\\|^2$", title="the bias falls by orders of magnitude")
    axes[1].set(ylabel="samples", title="samples until the score function is ahead")
    for ax in axes:
        ax.set_xticks(range(len(stages)), [_RUNGS[s] for s in stages])
        ax.set(yscale="log", xlim=(-0.5, len(stages) - 0.4))
        ax.grid(visible=False, axis="x")
    return figure


def _dots(ax: "Axes", parts: list[pd.DataFrame], column: str, colour: str, shift: float) -> None:
    for i, part in enumerate(parts):
        y = part[column].to_numpy()
        ax.plot(i + shift + jitter(len(y), spread=0.05), y, "o", color=colour, alpha=0.6, mew=0, ms=4)
        ax.plot(i + shift + np.array([-0.1, 0.1]), [np.median(y)] * 2, color=colour, lw=2.5)
