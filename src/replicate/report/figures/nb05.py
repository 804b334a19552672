"""The figures of notebook 05: influence between states, dropped credit, sampling error, bypasses, maps of costates.

Each function takes the table it draws, one row per number, and returns the figure; which model or ladder the numbers
come from is said by the notebook's caption.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION, panels

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
    """Where a costate's credit comes from: scored token k down, token t of the state across, one panel per state.

    ``table`` has the columns ``state, scored, token, norm``: the mean norm of A_k dlog pi(o_k)/dh_t^l. Cells show its
    share of the column, what the costate at token t is made of; (15) with that state keeps the framed diagonal.
    """
    states = list(table["state"].unique())
    figure, axes = panels(1, len(states), width=2.15 * len(states), height=2.9, sharey=True)
    for ax, state in zip(np.atleast_1d(axes), states, strict=True):
        block = (
            table[table["state"] == state].pivot(index="scored", columns="token", values="norm").to_numpy()
        )
        share = block / block.sum(0)
        size = len(block)
        ax.imshow(np.where(block > 0, share, np.nan), cmap="Blues", vmin=0, vmax=1.6)
        for (k, t), part in np.ndenumerate(share):
            own = k == t
            said = "0" if part == 0 else f"{100 * part:.0f}%"
            colour = BLACK if own else VERMILION if part > 0 else GREY
            ax.text(
                t, k, said, ha="center", va="center", color=colour, weight="bold" if k > t and part else None
            )
            if own:
                ax.add_patch(_square(t, k))
        _frame(ax)
        ax.set_xticks(range(size), [f"$h_{t + 1}$" for t in range(size)])
        ax.set_yticks(range(size), [f"$o_{k + 1}$" for k in range(size)])
        later = (block.sum() - block.trace()) / block.sum()
        heard = f"{100 * later:.0f}% from later tokens" if later else "own token only"
        ax.set_title(f"{state}:\n{heard}", loc="center", color=VERMILION if later else BLACK)
    np.atleast_1d(axes)[0].set_ylabel("token scored")
    figure.supxlabel("position of the state", fontsize=10)
    figure.suptitle("Whose credit arrives where: (15) keeps the framed diagonal and drops the red")
    return figure


def _square(x: int, y: int):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, ec=BLACK, lw=1.2)


def monte_carlo(table: pd.DataFrame) -> "Figure":
    """Error of an average of n costates: runs (band: 90% of them, dots: their root mean square) on the exact curve.

    ``table`` has the columns ``estimate, n, run, error, predicted``, the last being the exact root mean square; errors
    are relative to the norm of the value gradient.
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
    sizes = np.sort(table["n"].unique())
    ax.set(
        title="With $G_t$ the error falls as $n^{-1/2}$; with own rewards it stops at a bias",
        xscale="log",
        yscale="log",
        xlabel="completions averaged, $n$   (lines: exact; dots: sampled, rms; bands: 90% of runs)",
        ylabel=r"$\|\mathrm{average} - g\| \, / \, \|g\|$",
        xlim=(sizes[0] / 1.4, sizes[-1] * 7),
    )
    return figure


def cut_token_path(table: pd.DataFrame) -> "Figure":
    """Credit that reaches a token's embedding at fixed tokens, by the number of tokens in between: a line per model.

    ``table`` has the columns ``model, between, share``, one row per completion: the credit over that with no token in
    between. Lines are means, bars hold 80% of the completions.
    """
    figure, ax = panels(1, 1, width=6.8, height=3.7)
    last, ends = table["between"].max(), {}
    styles = zip((BLUE, GREEN, PURPLE, VERMILION), "osD^", (-0.06, 0.0, 0.06, 0.0), strict=True)
    for (name, part), (colour, marker, aside) in zip(table.groupby("model", sort=False), styles, strict=True):
        by_gap = part.groupby("between")["share"]
        mean, low, high = by_gap.mean(), by_gap.quantile(0.1), by_gap.quantile(0.9)
        ax.vlines(mean.index + aside, low, high, color=colour, alpha=0.35, lw=3)
        ax.plot(mean.index + aside, mean, marker=marker, color=colour)
        ends[name] = (mean.iloc[-1], colour)
    for (name, (_, colour)), height in zip(
        ends.items(), _apart([y for y, _ in ends.values()], 0.085), strict=True
    ):
        text = f"{name}: exactly 0" if ends[name][0] == 0 else name
        ax.annotate(text, (last, height), (10, 0), textcoords="offset points", color=colour, va="center")
    ax.set(
        title="Fix the tokens: only the model without a memory stops hearing from later ones",
        xlabel="tokens between the embedding and the scored token (bars: 80% of completions)",
        ylabel="credit at the embedding\n(1: no token in between)",
        xlim=(-0.15, last + 1.35),
        xticks=range(last + 1),
        ylim=(-0.05, None),
    )
    return figure


def _apart(heights: list[float], gap: float) -> list[float]:
    """``heights`` moved up where needed, so that labels at them are at least ``gap`` apart."""
    placed, floor = list(heights), -np.inf
    for i in np.argsort(heights):
        placed[i] = floor = max(heights[i], floor + gap)
    return placed


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
