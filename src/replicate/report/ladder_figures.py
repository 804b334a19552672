"""The figures of notebooks 09, 11 and 12: checkpoints along the horizontal axis, or one point per checkpoint.

Each function takes the table it draws (see :func:`replicate.runs.tables.per_checkpoint`) and returns the figure; the
caption, with the ladder's name, is the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels
from replicate.report.stats import affine_fit, zscore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TYPESET = {
    "S = (V - Delta) H, one costate": "$(V - \\Delta)\\,H$, one costate",
    "V": "$V$",
    "V H": "$V H$",
    "J_0": "$J_0$",
    "J_0 (1 - J_0)": "$J_0 (1 - J_0)$",
    "headroom H": "headroom $H$",
    "|grad_theta J|^2": "$|\\nabla_\\theta J|^2$",
}
_BUDGET_COLOURS = (SKY, BLUE, GREEN, ORANGE, VERMILION, PURPLE)


def tokens_axis(frame: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Horizontal positions and their label: pretraining tokens in thousands, millions or billions."""
    for size, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if frame.tokens.max() >= size:
            return frame.tokens.to_numpy() / size, f"pretraining tokens ({unit})"
    return frame.tokens.to_numpy(), "pretraining tokens"


def abilities(frame: pd.DataFrame, *, labels: int, vocab: int) -> "Figure":
    """What each checkpoint does at the answer position: reward and masses on the left, entropy on the right."""
    figure, (left, right) = panels(1, 2, width=9.0, height=3.4)
    x, label = tokens_axis(frame)
    for column, name, colour in (
        ("label_mass", "mass on the labels", GREY),
        ("top", "share of prompts with\nthe label on top", SKY),
        ("reward", "$J$ = mean $\\pi(y\\,|\\,q)$", BLUE),
    ):
        left.plot(
            x, frame[column], color=colour, label=name, marker=".", lw=2.2 if column == "reward" else 1.4
        )
    left.axhline(1 / labels, color=BLACK, lw=0.8, ls=":")
    left.annotate(
        f"chance 1/{labels}", (x[-1], 1 / labels), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    left.set(xlabel=label, ylabel="probability", title="what the answer position says", ylim=(-0.03, 1.06))
    left.legend(loc="center right", fontsize=8)
    right.plot(x, frame.entropy, color=PURPLE, marker=".")
    for level, name in (
        (np.log(vocab), f"ln {vocab}: uniform over the vocabulary"),
        (np.log(labels), f"ln {labels}: uniform over the labels"),
    ):
        right.axhline(level, color=BLACK, lw=0.8, ls=":")
        right.annotate(name, (x[-1], level), (0, 3), textcoords="offset points", ha="right", fontsize=8)
    right.set(
        xlabel=label,
        ylabel="entropy (nats)",
        title="entropy at the answer position",
        ylim=(-0.1, np.log(vocab) * 1.1),
    )
    return figure


def components(frame: pd.DataFrame) -> "Figure":
    """Figure 3: V, Delta, kappa, headroom, J_0 and entropy against the checkpoints, one panel each."""
    figure, axes = panels(2, 3, width=9.6, height=5.0, sharex=True)
    x, label = tokens_axis(frame)
    contents = (
        ("V", "$V$: squared value gradient", BLUE),
        ("delta", "$\\Delta$: squared distance to it", VERMILION),
        ("kappa", "$\\kappa$: alignment", GREEN),
        ("H", "$H$: headroom (std of $R$)", ORANGE),
        ("J0", "$J_0$: reward before RL", BLACK),
        ("entropy", "entropy (nats)", PURPLE),
    )
    for ax, (column, title, colour) in zip(axes.flat, contents, strict=True):
        ax.plot(x, frame[column], color=colour, marker=".")
        ax.set_title(title)
        if column in ("V", "delta", "kappa"):
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for ax in axes[1]:
        ax.set_xlabel(label)
    return figure


def gains(frame: pd.DataFrame, table: pd.DataFrame) -> "Figure":
    """Measured RL gain per budget (95% t-intervals over seeds) and its mean over budgets."""
    from scipy.stats import t

    figure, ax = panels(1, 1, width=7.6, height=3.8)
    x, label = tokens_axis(frame)
    budgets = sorted(table.budget.unique())
    for budget, colour in zip(budgets, _BUDGET_COLOURS, strict=False):
        seeds = table[table.budget == budget].groupby(["stage", "step"]).gain
        mean, count = seeds.mean().to_numpy(), seeds.count().to_numpy()
        half = seeds.sem().to_numpy() * t.ppf(0.975, np.maximum(count - 1, 1))
        ax.plot(x, mean, color=colour, label=f"{budget} updates")
        ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    ax.plot(x, frame.gain, color=BLACK, lw=2.4, label="mean over budgets")
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set(xlabel=label, ylabel="RL gain $J_n - J_0$", title="measured gain of GRPO from each checkpoint")
    ax.legend(title="budget $n$", loc="best")
    return figure


def prediction(frame: pd.DataFrame) -> "Figure":
    """Figure 1: measured gain and the gain predicted by a rising affine map of a score, for both readings of the score;
    beside each the scatter of the same numbers, coloured by J_0."""
    scores = {
        "score $(V - \\Delta)\\,H$, $\\Delta$ of one sampled costate": frame.S,
        "score $V\\,H$: $\\Delta$ of the average costate is 0": frame.V * frame.H,
    }
    figure, axes = panels(len(scores), 2, width=9.2, height=6.2, widths=(1.7, 1))
    x, label = tokens_axis(frame)
    for (left, right), (title, score) in zip(axes, scores.items(), strict=True):
        predicted = affine_fit(score, frame.gain, rising=True)
        left.plot(x, frame.gain, color=BLACK, label="measured, mean over budgets")
        left.fill_between(
            x, frame.gain - 2 * frame.gain_se, frame.gain + 2 * frame.gain_se, color=BLACK, alpha=0.12, lw=0
        )
        left.plot(
            x,
            predicted,
            color=VERMILION,
            ls="--",
            label="$a + b\\,\\times$ score, $b \\geq 0$",
        )
        left.axhline(0, color=BLACK, lw=0.8)
        left.set(xlabel=label, ylabel="RL gain", title=title)
        left.legend(loc="lower right")
        if np.ptp(predicted) < 1e-9:
            right.annotate("$b = 0$", (predicted[0], frame.gain.max()), (6, -2), textcoords="offset points")
        points = right.scatter(predicted, frame.gain, c=frame.J0, cmap="viridis", vmin=0, vmax=1, s=20)
        _diagonal(right, predicted, frame.gain)
        right.set(xlabel="predicted gain", ylabel="measured gain")
        figure.colorbar(points, ax=right, label="$J_0$")
    return figure


def predictor(frame: pd.DataFrame) -> "Figure":
    """Figure 4: predictors against the checkpoints, with the measured gain on the same scale (z-scores)."""
    figure, ax = panels(1, 1, width=7.6, height=3.6)
    x, label = tokens_axis(frame)
    for values, name, colour, style, width in (
        (frame.gain, "measured RL gain", BLACK, "-", 2.4),
        (frame.V * frame.H, "$V\\,H$", BLUE, "-", 1.5),
        (frame.S, "$(V - \\Delta)\\,H$, one sampled costate", VERMILION, "--", 1.5),
        (frame.H, "$H$ alone", ORANGE, "-", 1.5),
    ):
        ax.plot(x, zscore(values), color=colour, ls=style, lw=width, label=name)
    ax.set(xlabel=label, ylabel="z-score over checkpoints", title="predictor and response along pretraining")
    ax.legend(loc="upper right")
    return figure


def readiness(frame: pd.DataFrame) -> "Figure":
    """Figure 5: mean post-RL reward against J_0 + affine(V H) (left), z(J_0) + z(V H) (middle), J_0 alone (right)."""
    figure, axes = panels(1, 3, width=10.2, height=3.5, sharey=True)
    score = frame.V * frame.H
    contents = (
        (
            frame.J0 + affine_fit(score, frame.gain, rising=True),
            "$J_0 + a + b\\,V H$, $b \\geq 0$",
            "figure 5 left: calibrated",
        ),
        (zscore(frame.J0) + zscore(score), "$z(J_0) + z(V H)$", "figure 5 right: scale-free"),
        (frame.J0, "$J_0$", "not in the paper: $J_0$ alone"),
    )
    for ax, (values, label, title) in zip(axes, contents, strict=True):
        points = ax.scatter(values, frame.post, c=frame.tokens, cmap="viridis", s=22)
        ax.set(xlabel=label, title=title)
        correlation = np.corrcoef(values, frame.post)[0, 1]
        ax.annotate(f"r = {correlation:.3f}", (0.04, 0.92), xycoords="axes fraction")
    axes[0].set_ylabel("mean post-RL reward")
    _diagonal(axes[0], contents[0][0], frame.post)
    bar = figure.colorbar(points, ax=axes[-1], ticks=[frame.tokens.min(), frame.tokens.max()])
    bar.ax.set_yticklabels(["first", "last"])
    bar.set_label("checkpoint", labelpad=-12)
    return figure


def forest(table: pd.DataFrame, *, title: str) -> "Figure":
    """Rank correlations of several predictors with their block-bootstrap intervals, one row each."""
    figure, ax = panels(1, 1, width=7.4, height=0.38 * len(table) + 1.5)
    rows = np.arange(len(table))[::-1]
    ax.hlines(rows, table.low, table.high, color=BLUE, lw=2)
    ax.plot(
        table.spearman, rows, "o", color=BLUE, label="rank correlation with its 95% block-bootstrap interval"
    )
    ax.plot(
        table.partial, rows - 0.22, "D", color=VERMILION, ms=4, label="partial rank correlation given $J_0$"
    )
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set_yticks(rows, table.predictor.replace(_TYPESET))
    ax.set(xlim=(-1.05, 1.05), xlabel="Spearman's rank correlation with the gain", title=title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def multiverse(table: pd.DataFrame) -> "Figure":
    """Rank correlation of every reading's score with the gain: signals down, headrooms across, a panel per kind."""
    import seaborn as sns

    kinds = list(table.kind.unique())
    rows = -(-len(kinds) // 3)
    figure, axes = panels(
        rows, min(3, len(kinds)), width=9.0, height=2.7 * rows + 0.4, sharey=True, sharex=True
    )
    for ax, kind in zip(np.ravel(axes), kinds, strict=True):
        block = table[table.kind == kind].pivot(index="signal", columns="headroom", values="spearman")
        block = block.loc[table.signal.unique(), table.headroom.unique()]
        sns.heatmap(
            block,
            ax=ax,
            vmin=-1,
            vmax=1,
            cmap="RdBu",
            annot=True,
            fmt=".2f",
            cbar=False,
            annot_kws={"size": 8},
        )
        ax.set(title=kind, xlabel="", ylabel="")
        ax.tick_params(axis="x", rotation=35)
        ax.tick_params(axis="y", rotation=0)
        ax.grid(visible=False)
    figure.suptitle("rank correlation of each reading's score (signal x headroom) with the RL gain")
    return figure


def _diagonal(ax: "Axes", x, y) -> None:
    low, high = min(np.min(x), np.min(y)), max(np.max(x), np.max(y))
    ax.plot([low, high], [low, high], color=BLACK, lw=0.8, ls=":", zorder=0)
