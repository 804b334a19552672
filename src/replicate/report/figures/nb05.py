"""The figures of notebook 05: influence between states, dropped credit, sampling error, bypasses, maps of costates.

Each function takes the table it draws, one row per number, and returns the figure; which model or ladder the numbers
come from is said by the notebook's caption.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, VERMILION, jitter, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def influence(table: pd.DataFrame) -> "Figure":
    """Norm of dh_k^{l'}/dh_t^l, one panel per pair of layers: source layers down, target layers across.

    ``table`` has the columns ``from, t, to, k, norm``; within a panel the source position t runs down and the target
    position k across. White is an exact zero.
    """
    names = list(table["from"].unique())
    positions = table["t"].nunique()
    seen = np.log10(table.loc[table["norm"] > 0, "norm"])
    figure, axes = panels(len(names), len(names), width=7.6, height=7.6, sharex=True, sharey=True)
    for (row, column), ax in np.ndenumerate(axes):
        part = table[(table["from"] == names[row]) & (table["to"] == names[column])]
        block = part.pivot(index="t", columns="k", values="norm").to_numpy()
        image = ax.imshow(_log10(block), cmap="viridis", vmin=seen.min(), vmax=seen.max())
        _frame(ax, ticks=([0, positions - 1], [1, positions]))
        if not (block > 0).any():
            ax.text(0.5, 0.5, "all exactly 0", transform=ax.transAxes, ha="center", va="center", color=GREY)
        if row == 0:
            ax.set_title(f"to {names[column]}", loc="center")
        if row == len(names) - 1:
            ax.set_xlabel("position $k$")
        if column == 0:
            ax.set_ylabel(f"from {names[row]}\nposition $t$")
    figure.suptitle("How much each state (row, position $t$) moves each other state (column, position $k$)")
    label = r"$\log_{10}\|\partial h_k/\partial h_t\|_F$   (white: exactly 0)"
    figure.colorbar(image, ax=axes, shrink=0.6, label=label)
    return figure


def lost_credit(table: pd.DataFrame) -> "Figure":
    """Share of each completion's costate that a recursion drops, one row of dots per state, with the means.

    ``table`` has the columns ``state, completion, share``.
    """
    states = list(table["state"].unique())
    figure, ax = panels(1, 1, width=6.4, height=2.9)
    for row, state in enumerate(states):
        share = table.loc[table["state"] == state, "share"].to_numpy()
        ax.plot(share, row + jitter(len(share), spread=0.2), "o", color=BLUE, alpha=0.4, mew=0)
        ax.plot(share.mean(), row, "|", color=VERMILION, ms=24, mew=2.5)
        near_zero = share.mean() < 0.1  # then the dots leave room beside them, otherwise only above
        ax.annotate(
            f"mean {share.mean():.2f}",
            (share.max() if near_zero else share.mean(), row),
            (10, 0) if near_zero else (0, 19),
            textcoords="offset points",
            color=VERMILION,
            ha="left" if near_zero else "center",
            va="center",
        )
    ax.set_yticks(range(len(states)), states)
    ax.set(
        title="Credit from later tokens that (15) drops",
        xlabel="norm of the dropped part / norm of the costate, one dot per completion",
        ylabel="layer taken as the state",
        xlim=(-0.04, max(1.04, 1.04 * table["share"].max())),
        ylim=(-0.5, len(states) - 0.3),
    )
    ax.grid(axis="y", visible=False)
    return figure


def monte_carlo(table: pd.DataFrame, *, slope: float, stderr: float) -> "Figure":
    """Error of an average of n costates: runs (band: 90% of them, dots: their root mean square) on the exact curve.

    ``table`` has the columns ``estimate, n, run, error, predicted``, the last being the exact root mean square; errors
    are relative to the norm of the value gradient. ``slope`` and its ``stderr`` belong to the first estimate.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.9)
    for (name, part), colour in zip(table.groupby("estimate", sort=False), (BLUE, VERMILION), strict=True):
        runs = part.groupby("n")["error"]
        low, high = runs.quantile(0.05), runs.quantile(0.95)
        rms = part.assign(square=part["error"] ** 2).groupby("n")["square"].mean() ** 0.5
        exact = part.groupby("n")["predicted"].first()
        ax.fill_between(low.index, low, high, color=colour, alpha=0.18, lw=0)
        ax.plot(exact.index, exact, "-", color=colour)
        ax.plot(rms.index, rms, "o", color=colour)
        ax.annotate(
            name,
            (exact.index[-1], exact.iloc[-1]),
            (9, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    sizes = table["n"].unique()
    ax.annotate(
        f"slope {slope:.3f} \u00b1 {stderr:.3f} (s.e.)".replace("-", "\u2212"),
        (sizes[len(sizes) // 2], 0.05 * table["predicted"].max()),
        color=BLUE,
        ha="right",
    )
    ax.set(
        title="Error of an average: lines exact, dots measured (both rms), bands 90% of the runs",
        xscale="log",
        yscale="log",
        xlabel="completions averaged, $n$",
        ylabel=r"$\|\mathrm{average} - g\| \, / \, \|g\|$",
        xlim=(sizes[0] / 1.4, sizes[-1] * 9),
    )
    return figure


def cut_token_path(table: pd.DataFrame) -> "Figure":
    """Gradient of the last token's log-probability at earlier states, tokens fixed: a line per model.

    ``table`` has the columns ``model, steps back, norm``, one row per completion; lines are means, bands hold 90% of
    the completions. Zero has a place on the axis.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.6)
    smallest = table.loc[table["norm"] > 0, "norm"].min()
    floor = 10.0 ** np.floor(np.log10(smallest))
    for (name, part), colour, marker in zip(
        table.groupby("model", sort=False), (BLUE, GREEN, VERMILION), "os^", strict=True
    ):
        by_step = part.groupby("steps back")["norm"]
        mean, low, high = by_step.mean(), by_step.quantile(0.05), by_step.quantile(0.95)
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(mean.index, mean, marker=marker, color=colour)
        ax.annotate(
            name,
            (mean.index[-1], mean.iloc[-1]),
            (9, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    ax.set_yscale("symlog", linthresh=floor, linscale=0.5)
    top = int(np.ceil(np.log10(table["norm"].max())))
    decades = range(int(np.log10(floor)), top + 1)
    ax.set_yticks([0, *(10.0**k for k in decades)], ["exactly 0", *(f"$10^{{{k}}}$" for k in decades)])
    ax.minorticks_off()
    last = table["steps back"].max()
    ax.set(
        title="Credit at fixed tokens: means over completions, bands hold 90% of them",
        xlabel="steps $j$ back from the token that is scored",
        ylabel=r"$\|\partial\log\pi(o_T)/\partial s_{T-j}\|$",
        xlim=(-0.2, last + 1.1),
        xticks=range(last + 1),
        ylim=(-0.25 * floor, None),
    )
    return figure


def costate_map(table: pd.DataFrame, tokens: list[str]) -> "Figure":
    """Norms of costates over positions (across) and layers (up), one panel per rung of a ladder.

    ``table`` has the columns ``rung, state, position, norm`` one row per cell; ``tokens`` names the positions. White
    is an exact zero.
    """
    rungs, states = table["rung"].unique(), table["state"].unique()
    seen = np.log10(table.loc[table["norm"] > 0, "norm"])
    figure, axes = panels(1, len(rungs), width=11.0, height=3.8, sharey=True)
    for ax, rung in zip(np.atleast_1d(axes), rungs, strict=True):
        part = table[table["rung"] == rung]
        block = part.pivot(index="state", columns="position", values="norm").loc[states].to_numpy()
        image = ax.imshow(
            _log10(block), aspect="auto", cmap="magma", vmin=seen.min(), vmax=seen.max(), origin="lower"
        )
        _frame(ax)
        ax.set_xticks(range(len(tokens)), tokens, rotation=55, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(states)), states)
        ax.set(title=rung, xlabel="token at the position")
        if (block == 0).any():
            row, column = np.argwhere(block == 0).mean(0)
            ax.text(column, row, "exactly 0", ha="center", va="center", color=GREY)
    np.atleast_1d(axes)[0].set_ylabel("state")
    figure.suptitle("Costates before, during and after the climb in reward, mean over prompts")
    figure.colorbar(
        image, ax=axes, label=r"$\log_{10}$ mean of $\|\partial\pi(y\,|\,q)/\partial h_t^{\,l}\|$"
    )
    return figure


def _log10(norms: np.ndarray) -> np.ndarray:
    """log10, and NaN (drawn white) for an exact zero."""
    return np.log10(norms, where=norms > 0, out=np.full_like(norms, np.nan))


def _frame(ax: "Axes", *, ticks: tuple[list, list] | None = None) -> None:
    """A thin frame all round, so that a panel of exact zeros is seen to be a panel."""
    for spine in ax.spines.values():
        spine.set(visible=True, color=BLACK, linewidth=0.6)
    ax.grid(visible=False)
    if ticks:
        ax.set_xticks(*ticks)
        ax.set_yticks(*ticks)
