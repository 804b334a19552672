"""The figures of notebook 11: checkpoints along the horizontal axis, or one point per checkpoint.

Each function takes the table it draws (see :func:`replicate.runs.tables.per_checkpoint`) and returns the figure; the
caption, with the ladder's name, is the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import diagonal, tokens_axis
from replicate.report.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels
from replicate.statistics.series import affine_fit, zscore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_BUDGET_COLOURS = (SKY, BLUE, GREEN, ORANGE, VERMILION, PURPLE)


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


def shown_updates(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What :func:`updates` draws of the table of all updates: three checkpoints whole, of the others both ends."""
    whole = table.step.isin(frame.step.iloc[list(_rungs(frame).values())])
    ends = table["update"].isin([table["update"].min(), table["update"].max()])
    columns = ["stage", "step", "tokens", "seed", "update", "reward", "null_groups"]
    return table.loc[whole | ends, columns]


def _rungs(frame: pd.DataFrame) -> dict[str, int]:
    """First and last checkpoint, and the one whose J_0 is nearest half-way between theirs."""
    half = frame.J0.iloc[[0, -1]].mean()
    return {"first": 0, "half-way": int((frame.J0 - half).abs().argmin()), "last": len(frame) - 1}


def updates(frame: pd.DataFrame, table: pd.DataFrame) -> "Figure":
    """What happens within a run: the sampled reward update by update from three checkpoints, mean and standard error
    over seeds; and along the ladder the share of groups of equal rewards, at the first and at the last update."""
    figure, (left, right) = panels(1, 2, width=9.4, height=3.4)
    for (name, rung), colour in zip(_rungs(frame).items(), (SKY, BLUE, VERMILION), strict=True):
        row = frame.iloc[rung]
        run = table[(table.stage == row.stage) & (table.step == row.step)].groupby("update").reward
        mean, error = run.mean(), run.sem()
        left.plot(mean.index, mean, color=colour, label=f"{name}, $J_0$ = {row.J0:.2f}")
        left.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
    left.set(
        xlabel="update", ylabel="mean reward of the samples", title="three checkpoints, update by update"
    )
    x, label = tokens_axis(frame)
    for update, style in ((table["update"].min(), "-"), (table["update"].max(), ":")):
        share = table[table["update"] == update].groupby(["stage", "step"]).null_groups.mean()
        right.plot(x, share, color=GREEN, ls=style, label=f"update {update}")
    right.plot(x, frame.J0, color=GREY, lw=1.2, label="$J_0$")
    right.set(xlabel=label, ylabel="share of groups, $J_0$", title="groups of equal rewards")
    for ax in (left, right):  # below the axes: the curves may be anywhere in them
        ax.set_ylim(-0.03, 1.06)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
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
        diagonal(right, predicted, frame.gain)
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
