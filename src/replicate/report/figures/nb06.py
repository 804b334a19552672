"""The figures of notebook 06: the two paths of (20), the entropy bound, Gumbel noise and the constant of (21).

Each function takes the table it draws and returns the figure; the caption, with the model's name, is the notebook's.
"""

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from replicate.lm import gap
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WAY_COLOURS = {"no noise": BLACK, "Gumbel-softmax": ORANGE, "straight-through": BLUE}
_RUNG_COLOURS = (PURPLE, GREEN, BLUE)
_STEPS = (
    "exact norm",
    "split off\n$\\partial F/\\partial e$",
    "split off\nhead",
    "split off\nembeddings",
    "norm to\ntrace",
    "trace to\nentropy",
)


def two_paths(frame: pd.DataFrame) -> "Figure":
    """Norms of both paths of (20) against the temperature: attention path above, path through the token below, a
    column per model.

    ``frame`` has the columns ``model, path, way, tau, median, low, high``; the band between ``low`` and ``high`` is
    drawn where they differ. Norms below 1e-4 leave the panels at the bottom.
    """
    models, paths = list(frame.model.unique()), ("attention", "token")
    figure, axes = panels(2, len(models), width=9.2, height=5.4, sharex=True, sharey="row", squeeze=False)
    for (path, row), (column, model) in itertools.product(zip(paths, axes, strict=True), enumerate(models)):
        ax = row[column]
        for (way, part), marker in zip(
            frame[(frame.model == model) & (frame.path == path)].groupby("way", sort=False),
            "osD",
            strict=True,
        ):
            colour = _WAY_COLOURS[way]
            ax.plot(part.tau, part["median"], color=colour, marker=marker, label=way)
            ax.fill_between(part.tau, part.low, part.high, color=colour, alpha=0.18, lw=0)
        ax.set(xscale="log", yscale="log")
    # Larger models leave the range of the tiny ladder.
    low, high = (
        frame.loc[frame.path == "attention", "low"].min(),
        frame.loc[frame.path == "attention", "high"].max(),
    )
    for ax, model in zip(axes[0], models, strict=True):
        ax.set(title=model, ylim=(min(1, low / 1.2), max(200, 1.2 * high)))
    taus = sorted(frame.tau.unique())
    for ax in axes[1]:
        ax.set(xlabel=r"temperature $\tau$", ylim=(1e-4, 100))
        ax.set_xticks(taus, [f"{tau:g}" for tau in taus])
        ax.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("attention path\n(operator norm)")
    axes[1, 0].set_ylabel("path through the token\n(operator norm)")
    axes[0, 0].legend(loc="upper left", ncols=3, fontsize=8.5, columnspacing=1.2, handlelength=1.5)
    return figure


def norm_against_entropy(policies: pd.DataFrame, *, vocab: int) -> "Figure":
    """Norm of the softmax Jacobian against the entropy: the ladder's policies (columns ``rung, H, norm``), the sharp
    bound, the normalised form with constant 1, and two families: all policies on two tokens, uniform ones on n."""
    figure, ax = panels(1, 1, width=6.6, height=4.1)
    grid = np.geomspace(3e-4, math.log(vocab), 200)
    ax.loglog(grid, grid / (2 * math.log(2)), color=BLACK)
    ax.annotate(r"sharp bound $H/(2\ln 2)$", (0.0027, 0.0034), rotation=27.5, fontsize=9, ha="center")
    ax.loglog(grid, grid / math.log(vocab), "--", color=GREY)
    ax.annotate(r"$H/\log V$", (6.2, 1.0), fontsize=9, va="center", color="0.4")
    share = torch.logspace(-6, math.log10(0.5), 80, dtype=torch.float64)
    coins = torch.stack([1 - share, share], -1)
    ax.loglog(torch.special.entr(coins).sum(-1), gap.softmax_jacobian_norm(coins), color=ORANGE)
    line = {"arrowstyle": "-", "color": ORANGE}
    ax.annotate(
        "any policy on two tokens",
        (0.2, 0.1),
        (0.012, 0.13),
        color=ORANGE,
        fontsize=9,
        ha="center",
        arrowprops=line,
    )
    n = np.arange(2, vocab + 1)
    ax.loglog(np.log(n), 1 / n, color=VERMILION, lw=1.2, zorder=1)
    ax.annotate("uniform on\n$n$ tokens", (3.0, 0.042), color=VERMILION, fontsize=9, ha="right", va="top")
    for (rung, part), colour in zip(policies.groupby("rung", sort=False), _RUNG_COLOURS, strict=False):
        ax.loglog(part.H, part.norm, "o", mew=0, alpha=0.6, color=colour, label=rung)
    ax.legend(loc="upper left", title="policies of the ladder", fontsize=8.5)
    ax.set(xlabel="entropy $H$ (nats)", ylabel=r"norm of $\mathrm{diag}(p)-pp^\top$")
    ax.set(
        xlim=(4e-4, 20), ylim=(3e-5, 5), title="a small entropy makes the norm small; a large one need not"
    )
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
        (gap.entropy_bound(pi), r"$H/(2\ln 2)$"),
        (trace, r"$1-\sum\pi^2$"),
        (gap.softmax_jacobian_norm(pi), r"$\|D_\pi\|$"),
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
    ax.set(xscale="log", yscale="log", xlim=(0.014, 7), xlabel=r"temperature $\tau$")
    ax.set(ylabel="norm of the Jacobian", title="Gumbel-softmax: the mean settles, the spread does not")
    ax.set_yticks([0.2, 0.3, 0.5, 1, 2, 3], ["0.2", "0.3", "0.5", "1", "2", "3"], minor=False)
    ax.set_yticks([], minor=True)
    return figure


def whose_entropy(frame: pd.DataFrame) -> "Figure":
    """Norm over the sharp bound taken with the *policy's* entropy, two tokens: without noise (left), mean over Gumbel
    noise and largest over it (right). Columns ``tau, H, no noise, mean, largest``."""
    figure, axes = panels(1, 2, width=9.2, height=3.6, sharey=True)
    taus = sorted(frame.tau.unique())
    for ax, column in zip(axes, ("no noise", "mean"), strict=True):
        for tau, colour in zip(taus, (BLUE, SKY, BLACK, ORANGE, VERMILION), strict=False):
            part = frame[frame.tau == tau]
            ax.loglog(part.H, part[column], color=colour, label=f"$\\tau$ = {tau:g}")
        ax.axhline(1.0, color="0.3", lw=0.9, ls=":")
        ax.set(xlabel="entropy $H$ of the policy (nats)", ylim=(1e-3, 1e6), xlim=(4e-8, 1))
    largest = frame[frame.tau == taus[0]]
    axes[1].loglog(largest.H, largest.largest, "--", color=GREY)
    axes[1].annotate("largest over the noise,\nany temperature", (1e-4, 4e4), fontsize=9, color="0.4")
    axes[0].annotate("at the bound", (6e-8, 1), (0, 3), textcoords="offset points", fontsize=8, color="0.3")
    axes[0].set(title="soft token without noise", ylabel="norm / bound with the policy's entropy")
    axes[1].set(title="Gumbel-softmax: mean and largest over the noise")
    axes[0].legend(loc="upper right", ncols=1)
    return figure


def chain(frame: pd.DataFrame, rewards: dict[str, float]) -> "Figure":
    """How the bound of (21) grows over the exact norm, factor by factor: one thin line a prompt, their geometric mean
    thick, a panel per rung. ``frame`` has the column ``rung`` and one column per step of the chain, in order."""
    figure, axes = panels(1, len(rewards), width=10.4, height=3.6, sharey=True)
    for ax, (rung, reward) in zip(np.atleast_1d(axes), rewards.items(), strict=True):
        part = frame[frame.rung == rung].drop(columns="rung")
        steps = range(len(part.columns))
        ax.plot(steps, part.T, color=BLUE, alpha=0.35, lw=1)
        ax.plot(steps, np.exp(np.log(part).mean()), "o-", color=VERMILION)
        ax.set(yscale="log", title=f"{rung}, $J$ = {reward:.2g}")
        ax.set_xticks(steps, _STEPS, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("bound / exact norm")
    figure.suptitle(
        "From the exact norm of the token path to the bound of (21)", x=0.01, ha="left", fontsize=10.5
    )
    return figure
