"""The figures of notebook 04: the readings of (11), its two sides token by token, what is sent back to the states.

Each function takes the table it draws and returns the figure; the caption, which names the task, is the notebook's.
Whiskers are two standard errors.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

_SIDES = {"score function": (VERMILION, -0.12), "pathwise": (BLUE, 0.12)}
_MARKERS = "os"


def readings(table: pd.DataFrame, *, limit: float) -> "Figure":
    """The two sides of (11) with GRPO's own advantage against the group size, and what both tend to.

    ``table`` has the columns ``N, left, right, stopped`` and the standard error ``... s.e.`` of each (0: quadrature).
    """
    figure, ax = panels(1, 1, width=7.0, height=3.9)
    for name, colour, style in (
        ("stopped", VERMILION, {"marker": "s", "ls": "-", "lw": 1}),
        ("right", BLUE, {"marker": "o", "ms": 11, "mfc": "none", "mew": 1.6}),
        ("left", BLACK, {"marker": "o", "ms": 4}),
    ):
        points(ax, table["N"], table, name, colour, error=f"{name} s.e.", **style)
    ax.axhline(limit, color=GREY, lw=0.8)
    where = {"textcoords": "offset points"}
    at = table.set_index("N")
    ax.annotate(r"slope of the signal / its std", (64, limit), (6, 5), ha="right", color="0.4", **where)
    ax.annotate(
        "right side, mean and std of the group stopped",
        (2, at.loc[2, "stopped"]),
        (12, -2),
        color=VERMILION,
        **where,
    )
    ax.annotate("left side: advantage times score", (4, at.loc[4, "left"]), (14, -10), **where)
    text = "rings: right side, whole slope of the advantage"
    ax.annotate(text, (4, at.loc[4, "left"]), (14, -24), color=BLUE, **where)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="group size $N$",
        ylabel="side of (11) (2 s.e.)",
        title="GRPO's own advantage in (11), two readings",
        ylim=(0.25, 9),
    )
    ax.set_xticks(table["N"], [str(n) for n in table["N"]])
    ax.set_yticks([0.3, 0.5, 1, 2, 4, 8], ["0.3", "0.5", "1", "2", "4", "8"])
    ax.minorticks_off()
    return figure


def by_token(side: str, x: "Tensor") -> pd.DataFrame:
    """The rows of :func:`token_by_token` from ``x`` [rollouts, T, 2], a step and a parameter each."""
    names = {"t": range(x.shape[1]), "parameter": ["position gain", "velocity gain"]}
    index = pd.MultiIndex.from_product(names.values(), names=names)
    mean, error = x.mean(0).flatten(), x.std(0).flatten() / len(x) ** 0.5
    rows = {"side": side, "mean": mean, "standard error": error}
    return pd.DataFrame(rows, index).reset_index()


def token_by_token(table: pd.DataFrame) -> "Figure":
    """Both sides of (11) at each step (left) and their difference over the same rollouts (right).

    ``table`` has the columns ``side, t, parameter, mean, standard error``, the side "difference" being paired.
    """
    figure, (left, right) = panels(1, 2, width=9.6, height=3.5)
    steps, parameters = table["t"].unique(), list(table["parameter"].unique())
    for (side, name), part in table.groupby(["side", "parameter"]):
        k = parameters.index(name)
        if side == "difference":
            points(right, part["t"] + (-0.12, 0.12)[k], part, "mean", BLACK, marker=_MARKERS[k], label=name)
        else:
            colour, shift = _SIDES[side]
            points(left, part["t"] + shift, part, "mean", colour, marker=_MARKERS[k])
            if side == "pathwise":
                left.annotate(name, (0.3, part["mean"].iloc[0]), va="center")
    for height, (side, (colour, _)) in zip((0.18, 0.08), _SIDES.items(), strict=True):
        left.annotate(side, (0.97, height), xycoords="axes fraction", ha="right", color=colour)
    for ax in (left, right):
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set(xlabel="step $t$", xticks=steps)
    left.set(ylabel="contribution to the gradient (2 s.e.)", title="both sides of (11)")
    right.set(ylabel="difference (2 s.e.)", title="score function minus pathwise, same rollouts")
    right.legend(loc="upper right")
    return figure


def in_units(
    to: str, task: str, entries: list[str], what: str, x: "Tensor", reference: "Tensor"
) -> pd.DataFrame:
    """The rows of :func:`sent`, an entry of ``x`` [n, entries] each, in units of ``reference`` [entries]."""
    mean, error = x.mean(0) / reference, x.std(0) / len(x) ** 0.5 / reference.abs()
    rows = {"entry": entries, "ratio": mean, "standard error": error}
    return pd.DataFrame({"to": to, "task": task, "what": what, **rows})


def sent(table: pd.DataFrame) -> "Figure":
    """Means of what the surrogate sends to parameters and to states, a row each, in units of what BPTT sends.

    ``table`` has the columns ``to, task, entry, what, ratio, standard error``; ``what`` is "as written" or "rewards in
    the graph", ``to`` is "parameters" or "state".
    """
    names = table[["to", "task", "entry"]].drop_duplicates().reset_index(drop=True)
    place = {tuple(name): -k - 0.8 * (name["to"] == "state") for k, name in names.iterrows()}
    figure, ax = panels(1, 1, width=8.2, height=4.2)
    for what, colour, style in (
        ("rewards in the graph", GREEN, {"ms": 11, "mfc": "none", "mew": 1.8}),
        ("as written", VERMILION, {"ms": 6}),
    ):
        part = table[table["what"] == what]
        y = [
            place[to, task, entry]
            for to, task, entry in zip(part["to"], part["task"], part["entry"], strict=True)
        ]
        ax.errorbar(
            part["ratio"], y, xerr=2 * part["standard error"], marker="o", ls="none", color=colour, **style
        )
    for x, text in ((0, "nothing"), (1, "what BPTT sends")):
        ax.axvline(x, color=BLUE if x else GREY, lw=1.4 if x else 0.8, zorder=0)
        above = {"xycoords": ("data", "axes fraction"), "ha": "center"}
        ax.annotate(text, (x, 1.02), color=BLUE if x else "0.4", **above)
    parameters, states = (
        table[(table["to"] == to) & (table["what"] == "as written")] for to in ("parameters", "state")
    )
    middle = {"textcoords": "offset points", "va": "center"}
    at = place[tuple(parameters.iloc[1][["to", "task", "entry"]])]
    ax.annotate(
        "the surrogate's gradient\nin the parameters",
        (1, at),
        (-14, 0),
        ha="right",
        color=VERMILION,
        **middle,
    )
    at = place[tuple(states.iloc[0][["to", "task", "entry"]])] - 0.5
    ax.annotate("its signal at the state,\nas written", (0, at), (24, 0), color=VERMILION, **middle)
    ax.annotate(
        "the same with rewards\nin the graph", (1, at - 2), (-14, 0), ha="right", color=GREEN, **middle
    )
    ax.set(
        xlabel="mean of what the surrogate sends, in units of what BPTT sends (2 s.e.)",
        yticks=list(place.values()),
        yticklabels=[f"{task}: {entry}" for _, task, entry in place],
        xlim=(-0.45, 1.3),
        ylim=(min(place.values()) - 0.6, 0.6),
    )
    ax.grid(axis="y", visible=False)
    return figure


def points(
    ax: "Axes",
    x: pd.Series | np.ndarray,
    table: pd.DataFrame,
    column: str,
    colour: str,
    *,
    error: str = "standard error",
    **style: object,
) -> None:
    """Dots with whiskers of two standard errors."""
    style = {"marker": "o", "ls": "none", **style}
    ax.errorbar(x, table[column], 2 * table[error], color=colour, **style)
