"""The figures of notebook 12: what predicts the RL gain over checkpoints, one point or one row each.

Each function takes the table it draws (see :func:`replicate.runs.tables.per_checkpoint`) and returns the figure; the
caption, with the ladder's name, is the notebook's.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import diagonal
from replicate.report.figures.style import BLACK, BLUE, VERMILION, panels
from replicate.statistics.series import affine_fit, zscore

if TYPE_CHECKING:
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
    diagonal(axes[0], contents[0][0], frame.post)
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
    for ax in np.ravel(axes)[len(kinds) :]:
        ax.set_axis_off()
    for ax, kind in zip(np.ravel(axes), kinds, strict=False):
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
