"""The figures of notebook 11: what is measured at the rungs of many ladders, and how RL responds to it.

A *study frame* has a row per ladder and rung (see :func:`replicate.runs.study_tables.frame`). Bands are 95% intervals
of Student's t over ladders, thin lines single ladders. Captions are the notebook's.
"""

import re
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.report.figures.ladders import diagonal, tokens_axis
from replicate.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    jitter,
    panels,
)
from replicate.statistics.over_ladders import over_ladders
from replicate.statistics.series import zscore
from replicate.statistics.summaries import geometric_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_BUDGET_COLOURS = (SKY, BLUE, GREEN, ORANGE, VERMILION, PURPLE)
_COOLED = {False: VERMILION, True: BLUE}
_COOLED_NAMES = {False: "constant rate", True: "cooled before each rung"}


def band(table: pd.DataFrame, x: str, y: str, *, logarithm: bool = False) -> pd.DataFrame:
    """``mean, low, high`` of ``y`` over ladders at each ``x``; of its logarithm, if asked. Where fewer than two ladders
    have a value nothing is said. ``table`` has one row per ladder and x."""
    rows = {}
    for at, values in table.groupby(x)[y]:
        if len(values) < 2:
            continue
        found = geometric_mean(values) if logarithm else vars(over_ladders(values))
        rows[at] = {name: found[name] for name in ("mean", "low", "high")}
    return pd.DataFrame(rows, index=["mean", "low", "high"]).T


def _draw(ax: "Axes", table: pd.DataFrame, x: str, y: str, *, colour: str, label: str, style="-", **options):
    found = band(table, x, y, **options)
    ax.fill_between(found.index, found.low, found.high, color=colour, alpha=0.18, lw=0)
    ax.plot(found.index, found["mean"], color=colour, ls=style, lw=2.0, label=label)


def components(frame: pd.DataFrame) -> "Figure":
    """Figure 3 over the ladders of a study frame: V, Delta, kappa and E|costate|^2 on one logarithmic axis (geometric
    means), and J_0, H and entropy (over that of the first rung) on a second one."""
    figure, (left, right) = panels(1, 2, width=9.6, height=3.9, widths=(1.25, 1))
    for column, name, colour, style in (
        ("empirical", "$E|\\hat\\lambda|^2$", GREY, "-"),
        ("delta", "$\\Delta$", VERMILION, "--"),
        ("kappa", "$\\kappa$", GREEN, "-"),
        ("V", "$\\mathcal{V}$", BLUE, "--"),
    ):
        shown = frame[["ladder", "step", column]].assign(**{column: frame[column].where(frame[column] > 0)})
        _draw(left, shown.dropna(), "step", column, colour=colour, label=name, style=style, logarithm=True)
    left.set(yscale="log", xlabel="pretraining steps", ylabel="per prompt and sample", title="components")
    relative = frame.entropy / frame.groupby("ladder").entropy.transform("first")
    for column, name, colour in (
        ("J0", "$J_0$", BLACK),
        ("H", "$H$", ORANGE),
        ("relative", "entropy / first", PURPLE),
    ):
        _draw(right, frame.assign(relative=relative), "step", column, colour=colour, label=name)
    right.set(xlabel="pretraining steps", title="reward, headroom, entropy", ylim=(0, 1.03))
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, fontsize=8.5)
    return figure


def averaging(table: pd.DataFrame, marks: Mapping[str, Real]) -> "Figure":
    """Rank correlation of the score with the gain against n averaged costates: a ``panel`` per reading, a thin line per
    ladder (``ladder, cooled``), the mean with its interval; ``marks`` are numbers of costates with a name."""
    names = list(table.panel.unique())
    figure, axes = panels(1, len(names), width=3.3 * len(names) + 0.5, height=3.9, sharey=True)
    for ax, name in zip(np.atleast_1d(axes), names, strict=True):
        shown = table[table.panel == name]
        for _, rows in shown.groupby("ladder", sort=False):
            ax.plot(rows.n, rows.spearman, color=_COOLED[bool(rows.cooled.iloc[0])], lw=0.8, alpha=0.6)
        _draw(ax, shown, "n", "spearman", colour=BLACK, label="mean over ladders")
        for said, n in marks.items():
            ax.axvline(n, color=GREY, lw=0.9, ls=":")
            ax.annotate(said, (n, -0.98), (2, 0), textcoords="offset points", fontsize=7.5, color="0.35")
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set(xscale="log", ylim=(-1.02, 1.02), xlabel="costates averaged, $n$", title=name)
    np.atleast_1d(axes)[0].set_ylabel("rank correlation with the gain")
    _legend(figure, table.cooled.unique())
    return figure


def _legend(figure: "Figure", cooled) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=BLACK, lw=2.0, label="mean over ladders")]
    lines += [
        Line2D([], [], color=_COOLED[c], lw=0.8, label=_COOLED_NAMES[c]) for c in sorted(map(bool, cooled))
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=8.5)


def hump(frame: pd.DataFrame, *, bins: int = 10) -> "Figure":
    """The response against J_0: the mean gain of every rung, and per budget the mean over ladders in bins of J_0."""
    figure, (left, right) = panels(1, 2, width=9.6, height=4.2)
    for cooled, rows in frame.groupby("cooled"):
        left.scatter(
            rows.J0,
            rows.gain,
            s=10,
            alpha=0.6,
            color=_COOLED[bool(cooled)],
            label=_COOLED_NAMES[bool(cooled)],
        )
    left.set(xlabel="$J_0$", ylabel="RL gain $J_n - J_0$", title="mean over budgets, a dot a rung")
    middle = (np.minimum((frame.J0 * bins).astype(int), bins - 1) + 0.5) / bins
    budgets = sorted(int(c.split("_")[1]) for c in frame if re.fullmatch(r"gain_\d+", c))
    for budget, colour in zip(budgets, _BUDGET_COLOURS, strict=False):
        column = f"gain_{budget}"
        means = frame.assign(middle=middle).groupby(["ladder", "middle"])[column].mean().reset_index()
        _draw(right, means, "middle", column, colour=colour, label=f"{budget}")
    highest = frame[[f"gain_{budget}" for budget in budgets]].to_numpy().max()
    # Where few ladders pass through a bin the band says little, and would take the whole axis.
    right.set(xlabel="$J_0$, in bins", title="by budget, mean over ladders", ylim=(-0.1, highest + 0.1))
    for ax, columns, title in ((left, 2, None), (right, 6, "updates")):
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, title=title, fontsize=8.5)
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


def predictor(frame: pd.DataFrame, lines: Mapping[str, str]) -> "Figure":
    """Figure 4, a panel per ladder: the gain and the predictors ``lines`` (name by column), as z-scores over rungs."""
    names = list(frame.ladder.unique())
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = panels(
        rows, columns, width=2.5 * columns, height=1.9 * rows + 0.8, sharex=True, sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=False):
        own = frame[frame.ladder == name]
        ax.plot(own.step, zscore(own.gain), color=BLACK, lw=1.4, zorder=3, label="measured RL gain")
        for (column, said), colour, style in zip(
            lines.items(), (SKY, VERMILION, BLUE, ORANGE), ("-", "--", ":", "-."), strict=False
        ):
            width = 2.4 if style == "-" else 1.1
            ax.plot(own.step, zscore(own[column]), color=colour, ls=style, lw=width, label=said)
        first = own.iloc[0]
        kind = "cooled" if first.cooled else "constant rate"
        ax.set_title(f"{name}: {first.labels} labels, {kind}", fontsize=8.5)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("pretraining steps", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("z-score", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def prediction(table: pd.DataFrame, skill: pd.DataFrame) -> "Figure":
    """Figure 1, out of sample: measured against predicted gain, every ladder predicted by a rising line that the other
    ladders fitted, a panel per reading (``score, predicted, gain, J0``); last, R^2 per ladder (``skill``: ``score, r2,
    cooled``) with mean and interval."""
    names = list(table.score.unique())
    figure, axes = panels(1, len(names) + 1, width=10.2, height=3.9, widths=(*[1.0] * len(names), 0.95))
    for ax, name in zip(axes, names, strict=False):
        rows = table[table.score == name]
        points = ax.scatter(
            rows.predicted, rows.gain, c=rows.J0, cmap="viridis", vmin=0, vmax=1, s=9, alpha=0.8
        )
        diagonal(ax, table.gain, table.gain)
        ax.set(xlabel="gain predicted by the other ladders", title=name)
    axes[0].set_ylabel("measured gain")
    figure.colorbar(points, ax=axes[-2], label="$J_0$")
    _dots(axes[-1], skill, names)
    _legend(figure, skill.cooled.unique())
    return figure


def _dots(ax: "Axes", skill: pd.DataFrame, names: list[str]) -> None:
    """R^2 of each ladder beside its mean and interval, a column per score."""
    for place, name in enumerate(names):
        rows = skill[skill.score == name]
        found = over_ladders(rows.r2)
        ax.scatter(
            place - 0.12 + jitter(len(rows), spread=0.08),
            rows.r2,
            s=14,
            alpha=0.7,
            color=[_COOLED[bool(c)] for c in rows.cooled],
        )
        ax.errorbar(
            place + 0.14,
            found.mean,
            [[found.mean - found.low], [found.high - found.mean]],
            fmt="o",
            color=BLACK,
            capsize=3,
        )
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    ax.set(xlim=(-0.5, len(names) - 0.5), title="$R^2$ on the unseen ladder")
