"""The figures of notebook 10: entropies by kind of token, and both sides of Prop. 2 and of Theorem 1 along a ladder.

Each function takes the table it draws, with a row a measured place and the columns ``step, tokens`` of its checkpoint,
and returns the figure; the caption, with the ladder's name, is the notebook's.
"""

from typing import TYPE_CHECKING

import pandas as pd

from replicate.report.figures.ladders import tokens_axis
from replicate.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "mark": GREY,
    "prose word": BLUE,
    "key": BLUE,
    "value, first time": ORANGE,
    "value, again": VERMILION,
    "label": GREEN,
    "word or 'answer'": BLUE,
    "the answer": VERMILION,
}
_SIDES = {
    "paper": ("paper's form, $C\\,H/\\log|\\mathrm{vocabulary}|$", VERMILION, "-"),
    "spread": ("$\\|\\mathbf{M}\\|\\,H/(2\\ln2)$", ORANGE, "-"),
    "pairs": ("sharpest right side: $H$ in bits", PURPLE, "--"),
    "exact": ("exact left side", BLUE, "-"),
}


def entropies(curves: pd.DataFrame) -> "Figure":
    """Entropy of the policy along the ladder: a panel a ``document``, a line a ``kind`` (its mean ``H``, band from
    ``low`` to ``high``), dotted in its colour ``S``, the mean entropy of the corpus' own rule."""
    documents = list(curves.document.unique())
    width = 1.0 + 3.6 * len(documents)
    figure, axes = panels(1, len(documents), width=width, height=4.2, sharey=True, squeeze=False)
    for ax, document in zip(axes[0], documents, strict=True):
        part = curves[curves.document == document]
        for kind in part.groupby("kind").H.mean().sort_values(ascending=False).index:
            at = part[part.kind == kind].sort_values("step")
            x, label = tokens_axis(at)
            ax.plot(x, at.H, color=_COLOURS[kind], label=kind)
            ax.fill_between(x, at.low, at.high, color=_COLOURS[kind], alpha=0.15, lw=0)
            ax.plot(x, at.S, color=_COLOURS[kind], ls=":", lw=1.3)
        ax.set(xlabel=label, title={"prompts": "label documents"}.get(document, document))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=8.5)
    axes[0, 0].set_ylabel("entropy (nats)")
    return figure


def token_paths(table: pd.DataFrame) -> "Figure":
    """Figure 2, first half: both sides of (21) along the ladder in units of the worst fair coin, a panel a ``kind``;
    medians over places, columns ``exact, pairs, spread, paper`` and ``coin``."""
    kinds = [kind for kind in _COLOURS if kind in set(table.kind)]
    columns = -(-len(kinds) // 2)
    figure, axes = panels(
        2, columns, width=2.7 * columns, height=5.4, sharex=True, sharey=True, squeeze=False
    )
    for ax, kind in zip(axes.flat, kinds, strict=False):
        part = table[table.kind == kind]
        at = part[list(_SIDES)].div(part.coin, axis=0).assign(step=part.step, tokens=part.tokens)
        at = at.groupby("step").median()
        x, label = tokens_axis(at)
        for column, (name, colour, style) in _SIDES.items():
            ax.plot(x, at[column], color=colour, ls=style, label=name)
        ax.axhline(1, color=BLACK, lw=0.8, ls=":")
        ax.set(yscale="log", title=kind)
    for ax in axes.flat[len(kinds) :]:
        ax.set_visible(False)
    for ax in axes.flat[len(kinds) - columns : len(kinds)]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(label, fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("norm / worst fair coin")
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def by_position(table: pd.DataFrame, words: list[str]) -> "Figure":
    """Both sides of (21) along a prompt at one checkpoint, in units of the worst fair coin: medians over prompts at
    each ``position`` of the token that is sampled there, ``words`` naming the tokens."""
    figure, ax = panels(1, 1, width=9.4, height=4.0)
    at = table[list(_SIDES)].div(table.coin, axis=0).groupby(table.position).median()
    for column, (name, colour, style) in _SIDES.items():
        ax.plot(at.index, at[column], color=colour, ls=style, marker="o", ms=3.5, label=name)
    ax.axhline(1, color=BLACK, lw=0.8, ls=":")
    middle = at.index[len(at) // 2]
    ax.annotate("worst fair coin", (middle, 1), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(at.index, [words[i] for i in at.index], rotation=60, ha="right", fontsize=8.5)
    ax.set(
        yscale="log",
        ylabel="norm / worst fair coin",
        xlabel="token that is sampled, by position in the prompt",
        title="last checkpoint",
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.34), ncols=4)
    return figure


def costates(table: pd.DataFrame, sent: pd.DataFrame) -> "Figure":
    """Figure 2, second half: both sides of (23) along the ladder, relative to the costate, a panel for each number
    ``k`` of sampled tokens in between. Medians over prompts, bands from the least to the largest; in the panel of
    k = 1 also the distance of what GRPO sends in expectation, from the columns ``sent, signal`` of ``sent``."""
    figure, axes = panels(1, table.k.nunique(), width=11.0, height=4.2, sharey=True)
    for ax, (k, part) in zip(axes, table.groupby("k"), strict=True):
        for column, name, colour in (
            ("factors", "right side, $C$ split as in the paper", VERMILION),
            ("entropy", "right side of (23)", ORANGE),
            ("error", "error of the cut costate", BLUE),
        ):
            label = _relative_band(ax, part, column, colour, name)
        if k == 1:
            _relative_band(ax, sent, "sent", GREEN, "distance of what GRPO sends")
        ax.axhline(1, color=BLACK, lw=0.9, ls=":")
        ax.set(yscale="log", xlabel=label, title=f"{k} token{'s' * (k > 1)} in between")
    axes[1].annotate(
        "the costate itself",
        (0.03, 1),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
    )
    axes[0].set_ylabel("norm / $\\|\\lambda\\|$, at the prompt's embeddings")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=9)
    return figure


def _relative_band(ax: "Axes", part: pd.DataFrame, column: str, colour: str, name: str) -> str:
    share = (part[column] / part.signal).groupby(part.step)
    x, label = tokens_axis(part.groupby("step")[["tokens"]].first())
    ax.plot(x, share.median(), color=colour, label=name)
    ax.fill_between(x, share.min(), share.max(), color=colour, alpha=0.15, lw=0)
    return label
