"""The figures of notebook 06: the two paths of (20), the entropy bound, Gumbel noise and the constant of (21).

Each function takes the table it draws and returns the figure; the caption, with the model's name, is the notebook's.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from replicate.lm import gap
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RUNG_COLOURS = (PURPLE, GREEN, BLUE)
_POINTS = {"textcoords": "offset points"}
_STEPS = {
    "directions": ("directions:\n" + r"$\|\mathbf{M}\mathbf{D}\|$ to $\|\mathbf{M}\|\,\|\mathbf{D}\|$", SKY),
    "factors": ("factors of $\\mathbf{M}$:\n" + r"to $\|W\|\,\|\partial h'/\partial e\|\,\|E\|$", GREEN),
    "entropy": ("entropy:\n" + r"$\|\mathbf{D}\|$ to $H/(2\ln 2)$", ORANGE),
}


def two_paths(frame: pd.DataFrame) -> "Figure":
    """Path through the token and its bound in units of the attention path (above) and the first over the second
    (below) against the temperature, a column per relaxation, a colour per rung.

    ``frame`` has the columns ``rung, way, tau`` and ``token, bound, share``, medians over the noise. What is below the
    panels' floors leaves them there.
    """
    ways = list(frame.way.unique())
    figure, axes = panels(2, len(ways), width=10.4, height=5.2, sharex=True, sharey="row", squeeze=False)
    taus = sorted(frame.tau.unique())
    for column, way in enumerate(ways):
        top, bottom = axes[:, column]
        for (rung, part), colour in zip(
            frame[frame.way == way].groupby("rung", sort=False), _RUNG_COLOURS, strict=False
        ):
            top.plot(part.tau, part.token, "o-", color=colour, ms=3.5, label=rung)
            top.plot(part.tau, part.bound, "--", color=colour, lw=1.2)
            bottom.plot(part.tau, part.share, "o-", color=colour, ms=3.5)
        top.axhline(1, color="0.3", lw=0.9, ls=":")
        top.set(xscale="log", yscale="log", title=way, ylim=(1e-4, 1e5))
        bottom.axhline(1, color="0.3", lw=0.9, ls=":")
        bottom.set(xscale="log", yscale="log", xlabel=r"temperature $\tau$", ylim=(2e-5, 4))
        bottom.set_xticks(taus, [f"{tau:g}" for tau in taus])
        bottom.set_xticks([], minor=True)
    first, below, last = axes[0, 0], axes[1, 0], axes[0, -1]
    first.set_ylabel("path through the token\n/ attention path")
    below.set_ylabel("exact norm / bound")
    small = {"fontsize": 8.5, "color": "0.3", "annotation_clip": False}
    last.annotate("as large as the\nattention path", (taus[-1], 1), (8, 0), va="center", **_POINTS, **small)
    axes[1, -1].annotate("at the bound", (taus[-1], 1), (8, 0), va="center", **_POINTS, **small)
    last.annotate("dashed: bound", (taus[-1], 300), (8, 0), va="center", **_POINTS, **small)
    last.annotate("solid: exact", (taus[-1], 0.04), (8, 0), va="center", **_POINTS, **small)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return figure


def norm_against_entropy(policies: pd.DataFrame, *, vocab: int) -> "Figure":
    """Norm of the softmax Jacobian over its sharp bound, against the entropy: the ladder's policies (columns ``rung,
    H, norm, bound``) and two families, all policies on two tokens and uniform ones on n."""
    figure, ax = panels(1, 1, width=7.0, height=4.0)
    floor = 3e-4
    ax.axhline(1, color=BLACK, lw=1.4)
    ax.annotate(r"the bound $H/(2\ln 2)$", (2e-4, 1.1), fontsize=9)
    share = torch.logspace(-7, math.log10(0.5), 120, dtype=torch.float64)
    coins = torch.stack([1 - share, share], -1)
    ratio = gap.softmax_jacobian_norm(coins) / gap.entropy_bound(coins)
    ax.plot(torch.special.entr(coins).sum(-1), ratio, color=ORANGE)
    ax.annotate("two tokens", (6e-3, 0.42), color=ORANGE, fontsize=9, ha="center")
    n = np.arange(2, vocab + 1)
    ax.plot(np.log(n), 2 * math.log(2) / (n * np.log(n)), color=VERMILION, lw=1.4, zorder=1)
    ax.annotate(
        "uniform on 2\nto all tokens", (1.5, 0.035), color=VERMILION, fontsize=9, ha="right", va="top"
    )
    ax.plot([math.log(2)], [1], "*", color=BLACK, ms=13, zorder=5)
    ax.annotate("a fair coin", (math.log(2), 1), (8, 6), textcoords="offset points", fontsize=9)
    for (rung, part), colour in zip(policies.groupby("rung", sort=False), _RUNG_COLOURS, strict=False):
        ax.plot(part.H, part.norm / part.bound, "o", mew=0, ms=4.5, alpha=0.6, color=colour, label=rung)
    ax.legend(loc="lower left", title="policies of the ladder", fontsize=8.5, title_fontsize=8.5)
    ax.set(xscale="log", yscale="log", xlim=(1e-4, 8), ylim=(floor, 2.2))
    ax.set(xlabel="entropy $H$ (nats)", ylabel="exact norm / bound", title="Only a coin comes near the bound")
    return figure


def gumbel(frame: pd.DataFrame, pi: torch.Tensor) -> "Figure":
    """Mean norm, root mean square norm and norm of the mean of Gumbel-softmax Jacobians of the policy ``pi`` against
    the temperature (columns ``tau, mean, se, rms, norm of mean``), with the limits and the entropy bound."""
    figure, ax = panels(1, 1, width=6.8, height=3.7)
    ax.errorbar(frame.tau, frame["mean"], 2 * frame.se, fmt="o-", color=BLUE)
    ax.plot(frame.tau, frame.rms, "s-", color=VERMILION)
    ax.plot(frame.tau, frame["norm of mean"], "^-", color=GREEN)
    trace = float(gap.trace_bound(pi))
    for level, text in (
        (gap.entropy_bound(pi), r"bound $H/(2\ln 2)$"),
        (trace, r"softness $1-\sum\pi^2$"),
        (gap.softmax_jacobian_norm(pi), r"policy's own $\|\mathbf{D}\|$"),
    ):
        ax.axhline(float(level), color="0.3", lw=0.9, ls=":")
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        ax.annotate(text, (2.6, float(level)), va="center", fontsize=9, bbox=box)
    cold = np.geomspace(0.016, 0.3, 20)
    ax.plot(cold, np.sqrt(trace / (3 * cold)), color="0.3", lw=0.9, ls=":")
    offset = {"textcoords": "offset points", "fontsize": 9}
    ax.annotate(r"$\sqrt{(1-\sum\pi^2)/3\tau}$", (0.032, 2.65), (4, 4), **offset)
    last = frame.iloc[-1]
    ax.annotate("root mean square", (0.12, 1.3), (4, 4), color=VERMILION, **offset)
    ax.annotate("mean norm (2 s.e.)", (0.02, last["mean"]), (0, -16), color=BLUE, **offset)
    ax.annotate("norm of the mean", (0.02, last["norm of mean"]), (0, -15), color=GREEN, **offset)
    ax.set(xscale="log", yscale="log", xlim=(0.014, 14), xlabel=r"temperature $\tau$")
    ax.set(ylabel="norm of the Jacobian", title="Gumbel-softmax: the mean settles, the spread does not")
    ax.set_yticks([0.2, 0.3, 0.5, 1, 2, 3], ["0.2", "0.3", "0.5", "1", "2", "3"], minor=False)
    ax.set_yticks([], minor=True)
    return figure


def whose_entropy(frame: pd.DataFrame) -> "Figure":
    """Norm over the sharp bound taken with the *policy's* entropy, two tokens: without noise in the Jacobian (left),
    mean over Gumbel noise and largest over it (right). Columns ``tau, H, no noise, mean, largest``."""
    figure, axes = panels(1, 2, width=9.6, height=3.8, sharey=True)
    taus = sorted(frame.tau.unique())
    colours = dict(zip(taus, (BLUE, SKY, BLACK, VERMILION), strict=False))
    inside = {0.25: (0.4, 4e-3), 0.5: (1.2e-2, 1.6e-3)}  # the two that leave the left panel at its floor
    for ax, column in zip(axes, ("no noise", "mean"), strict=True):
        ax.axhspan(1, 1e6, color=ORANGE, alpha=0.08, lw=0)
        ax.axhline(1.0, color="0.3", lw=0.9, ls=":")
        for tau, colour in colours.items():
            part = frame[frame.tau == tau]
            ax.loglog(part.H, part[column], color=colour)
            at, side = (6e-8, part.loc[part.H.idxmin(), column]), {"va": "bottom"}
            if column == "mean" and tau == taus[0]:
                side = {"va": "top"}
            if column == "no noise" and tau in inside:
                at, side = inside[tau], {"va": "center", "ha": "left" if tau == taus[0] else "right"}
            off = (6, -3 if side["va"] == "top" else 3)
            ax.annotate(f"$\\tau$ = {tau:g}", at, off, fontsize=9, color=colour, **_POINTS, **side)
        ax.set(xlabel="entropy $H$ of the policy (nats)", ylim=(1e-3, 1e6), xlim=(4e-8, 6))
    largest = frame[frame.tau == taus[0]]
    axes[1].loglog(largest.H, largest.largest, "--", color=GREY)
    axes[1].annotate("largest over the noise,\nany temperature", (1e-4, 4e4), fontsize=9, color="0.4")
    axes[0].annotate("above the bound", (0.8, 3e5), fontsize=9, color="0.35", ha="right")
    axes[0].set(title="soft token, matched straight-through", ylabel="norm / bound with the policy's entropy")
    axes[1].set(title="Gumbel-softmax, straight-through: mean and largest")
    return figure


def places(frame: pd.DataFrame) -> "Figure":
    """Exact path through the token (dot) and the bound of (21) (ring) in units of the worst fair coin, for each place
    of the prompt, a panel per rung. Columns ``rung, place, H, exact, paper, coin``, one row a prompt; medians are
    drawn."""
    rungs = list(frame.rung.unique())
    figure, axes = panels(1, len(rungs), width=10.4, height=3.4, sharey=True, squeeze=False)
    names = list(frame.place.unique())
    for ax, rung in zip(axes[0], rungs, strict=True):
        part = frame[frame.rung == rung]
        unit = part[["exact", "paper"]].div(part.coin, axis=0).groupby(part.place).median().loc[names]
        entropy = part.groupby("place").H.median().loc[names]
        y = np.arange(len(names))[::-1]
        ax.axvspan(1, 1e5, color="0.93", lw=0)
        ax.hlines(y, unit.exact, unit.paper, color=GREY, lw=1.2)
        ax.plot(unit.exact, y, "o", color=BLUE, ms=6)
        ax.plot(unit.paper, y, "o", color=VERMILION, mfc="white", ms=6)
        for at, H in zip(y, entropy, strict=True):
            ax.annotate(f"{H:.1g}" if H < 1 else f"{H:.1f}", (4e4, at), fontsize=8.5, ha="right", va="center")
        ax.set(xscale="log", xlim=(2e-6, 1e5), title=rung, xlabel="in units of the worst fair coin")
        ax.set_yticks(y, names)
        ax.grid(visible=False, axis="y")
    first, top = axes[0, 0], len(names) - 1
    above = {"textcoords": "offset points", "fontsize": 8.5, "ha": "center"}
    at = frame[(frame.rung == rungs[0]) & (frame.place == names[0])]
    first.annotate("exact", ((at.exact / at.coin).median(), top), (0, 7), color=BLUE, **above)
    first.annotate("bound", ((at.paper / at.coin).median(), top), (0, 7), color=VERMILION, **above)
    first.annotate("$H$", (3e4, top), (-4, 9), **above)
    for ax in axes[0]:
        ax.set_ylim(-0.6, top + 0.8)
    return figure


def chain(frame: pd.DataFrame) -> "Figure":
    """Where (21) loses: from the exact norm (1) to the bound, one bar a rung on a logarithmic axis, a segment per step.

    ``frame`` has the columns ``rung`` and those of the steps, each a factor of at least 1, medians over prompts; and
    ``pairs``, where the sharper bound by pairs of tokens stands.
    """
    figure, ax = panels(1, 1, width=9.0, height=2.0 + 0.45 * len(frame))
    for y, row in enumerate(frame.iloc[::-1].itertuples()):
        left = 1.0
        for step, (text, colour) in _STEPS.items():
            factor = getattr(row, step)
            ax.barh(y, left * (factor - 1), left=left, color=colour, height=0.5, alpha=0.8)
            middle = left * factor**0.5
            if factor > 1.6:
                said = f"{factor:,.0f}" if factor > 10 else f"{factor:.1f}"
                ax.annotate(f"× {said}", (middle, y), ha="center", va="center", fontsize=9)
            if y == 0:
                ax.annotate(text, (middle, -0.42), ha="center", va="top", fontsize=7.5, color="0.2")
            left *= factor
        ax.annotate(f" {left:,.0f} times the exact norm", (left, y), va="center", fontsize=9)
        ax.plot([row.pairs], [y + 0.33], "v", color=BLACK, ms=6)
        if y == len(frame) - 1:
            ax.annotate("bound by pairs", (row.pairs, y + 0.42), ha="center", va="bottom", fontsize=8.5)
    ax.set(xscale="log", xlim=(1, 2.5e4), ylim=(-1.05, len(frame) - 0.2), xlabel="bound / exact norm")
    ax.set_yticks(range(len(frame)), frame.rung.tolist()[::-1])
    ax.grid(visible=False, axis="y")
    return figure
