"""What a study of longer answers found, as tables: methods side by side at T tokens, and what was measured before.

The outcome is the page's: the task's own reward of sampled completions, in closed form for answers of one token, and
its gain over the start. What an interval is taken over comes out as one number a ladder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replicate.runs import published
from replicate.statistics.over_ladders import OverLadders, over_ladders
from replicate.statistics.series import spearman

METHODS = {
    "grpo": "GRPO",
    "rloo": "leave-one-out",
    "to go": "reward-to-go",
    "ppo": "PPO, learned critic",
    "bptt": "BPTT, relaxed tokens",
    "gumbel": "soft Gumbel tokens",
}
"""What the study calls a method, and what figures call it."""

DENSITIES = {"all": "paid at the end", "each": "paid token by token"}

RIVALS = {
    "all": {"GRPO, leave-one-out": ("grpo", "rloo")},
    "each": {"GRPO, leave-one-out": ("grpo", "rloo"), "and reward-to-go": ("grpo", "rloo", "to go")},
}
"""The critic-free methods that PPO is compared with, the better one of each set, by density of the reward."""

SCORE_AT_T, SCORE_AT_ONE, ROOM = "score at T", "score at one token", "J_0 (1 - J_0)"

BUDGETS = (5, 10, 20, 40)
"""The numbers of updates over which a gain is a mean."""

_KEY = {"METHOD": {"bptt": "bptt", "gumbel": "gumbel"}, "CREDIT": {"gae": "ppo", "to_go": "to go"}}


@dataclass(frozen=True)
class HorizonTables:
    """``cells``: a row a cell with its settings, see :func:`settings`; ``gains``: a row per ladder, cell, rung, seed
    and budget; ``longer`` and ``costates``: what was measured at each rung; ``alarms``: a row per alarm that went off;
    ``said``: the study's description; ``trl``: TRL's trainers beside ours, None where they were not run."""

    cells: pd.DataFrame
    gains: pd.DataFrame
    longer: pd.DataFrame
    costates: pd.DataFrame
    alarms: pd.DataFrame
    said: dict[str, Any]
    trl: pd.DataFrame | None = None


def load(folder: Path) -> HorizonTables:
    """The tables of a published study; ``ValueError`` with one line if they are not there, or if a cell's settings are
    not those that it is called by."""
    names = ("cells", "gains", "longer", "costates", "alarms")
    found, said = published.read(folder, names, what="longer answers", parameters="params/horizons.yaml")
    beside = folder / "trl.parquet"
    trl = pd.read_parquet(beside) if beside.is_file() else None
    return HorizonTables(**found | {"cells": settings(found["cells"])}, said=said, trl=trl)


def settings(cells: pd.DataFrame) -> pd.DataFrame:
    """Every cell with ``part`` ("rungs": GRPO from all rungs; "methods": from one rung), ``method``, ``T``,
    ``density``, ``group`` and ``samples``, completions an update, read off its settings and not off its name.

    Raises ``ValueError`` for a cell that is called after another method than its settings make.
    """
    rows = cells.assign(
        part=np.where(cells.factor == "T", "rungs", "methods"),
        method=[_method(row) for _, row in cells.iterrows()],
        T=cells.ANSWER_TOKENS.astype(int),
        density=cells.ANSWER_REWARD,
        group=cells.GROUP_SIZE.astype(int),
        samples=(cells.PROMPTS * cells.GROUP_SIZE).astype(int),
    )
    wrong = rows[(rows.part == "methods") & (rows.method != rows.factor)]
    if len(wrong):
        one = wrong.iloc[0]
        raise ValueError(
            f"cells: expected {one.cell!r} to run {one.factor!r}, got the settings of {one.method!r}"
        )
    return rows


def _method(row: pd.Series) -> str:
    named = [names[row[column]] for column, names in _KEY.items() if row[column] in names]
    if named:
        return named[0]
    return "grpo" if (row.SCALE, row.BASELINE) == ("std", "mean") else "rloo"


def outcomes(tables: HorizonTables) -> pd.DataFrame:
    """The gains with ``before``, ``after`` and ``gained``, the reward that the page judges by, and the columns of
    :func:`settings`."""
    columns = ["cell", "part", "method", "T", "density", "group", "samples"]
    whole = tables.gains.merge(tables.cells[columns], on="cell", validate="many_to_one")
    short = whole["T"] == 1
    after, before = whole.reward.where(short, whole.sampled), whole.start.where(short, whole.sampled_start)
    return whole.assign(before=before, after=after, gained=after - before)


def mean_gains(tables: HorizonTables, *, budgets: Sequence[int] = BUDGETS) -> pd.DataFrame:
    """``gained`` and ``before``, the means over ``budgets`` and seeds, a row per cell, ladder and rung.

    ``ValueError`` names a cell that was not run to one of the budgets.
    """
    whole = outcomes(tables)
    whole = whole[whole.budget.isin(budgets)]
    count = whole.groupby("cell").budget.nunique().reindex(tables.cells.cell, fill_value=0)
    if short := count.index[count < len(budgets)].tolist():
        raise ValueError(
            f"budgets: expected cells that were run to {list(budgets)}, got {short[0]!r} that was not"
        )
    keys = ["cell", "part", "method", "T", "density", "group", "ladder", "step"]
    return whole.groupby(keys, sort=False)[["gained", "before"]].mean().reset_index()


def by_method(tables: HorizonTables) -> pd.DataFrame:
    """The mean gain of every method's cell, a row a ladder, columns (method, T, density, group).

    ``ValueError`` for a cell that trains from several rungs of a ladder, or lacks one of the ladders.
    """
    own = mean_gains(tables)
    own = own[own.part == "methods"]
    if own.duplicated(["cell", "ladder"]).any():
        raise ValueError("gains: expected one rung a ladder of a method's cell, got several")
    wide = own.pivot(index="ladder", columns=["method", "T", "density", "group"], values="gained")
    if wide.isna().any(axis=None):
        method, T, density, group = wide.columns[wide.isna().any()][0]
        lacking = f"{method} at T = {T}, {density!r}, groups of {group}"
        raise ValueError(f"gains: expected every cell on all ladders, got some without {lacking}")
    return wide.sort_index(axis=1)


def curves(tables: HorizonTables) -> pd.DataFrame:
    """What each method had gained after so many updates, in groups of the usual size, means over seeds: ``method, T,
    density, ladder, budget, samples`` (all completions so far), ``gained, before``; budget 0 is the start."""
    whole = outcomes(tables)
    usual = whole[whole.part == "rungs"].group.iloc[0]
    whole = whole[(whole.part == "methods") & (whole.group == usual)]
    start = whole.drop_duplicates(["cell", "ladder", "seed"]).assign(budget=0, gained=0.0)
    whole = pd.concat([start, whole])
    whole["samples"] *= whole.budget
    keys = ["method", "T", "density", "ladder", "budget", "samples"]
    order = {name: i for i, name in enumerate(METHODS)}
    mean = whole.groupby(keys, sort=False)[["gained", "before"]].mean().reset_index()
    return mean.sort_values(keys, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def noise(tables: HorizonTables, block: str = "all") -> pd.DataFrame:
    """Signal and noise of costates, summed over the rungs of a ladder: ``density, credit, T, ladder, index``, and
    ``ratio``, the one over the other.

    The signal of a rung is an unbiased estimate that may fall below zero, so that a ratio is taken of sums and not of
    single rungs. It weighs rungs by the size of their costates.
    """
    own = tables.costates[tables.costates.block == block]
    own = own.merge(tables.cells[["cell", "T", "density"]], on="cell", validate="many_to_one")
    keys = ["density", "credit", "T", "ladder", "index"]
    total = own.groupby(keys)[["signal", "noise"]].sum().reset_index()
    ratio = np.divide(total.signal, total.noise, out=np.full(len(total), np.nan), where=total.noise > 0)
    return total.assign(ratio=ratio)


def slopes(
    ratios: pd.DataFrame, credit: str, *, density: str = "all", horizons: Sequence[int] = (1, 2, 4, 8, 16)
) -> pd.Series:
    """By ladder the slope of log ratio in log T, least squares over those of ``horizons`` at which the ratio of
    :func:`noise` is above zero; NaN for a ladder with fewer than two. ``ValueError`` for a credit without records."""
    own = ratios[(ratios.credit == credit) & (ratios.density == density) & ratios["T"].isin(horizons)]
    if own.empty:
        raise ValueError(f"ratios: expected some under credit {credit!r} and density {density!r}, got none")
    found = {}
    for ladder, rows in own.groupby("ladder"):
        heard = rows[rows.ratio > 0]
        enough = len(heard) > 1
        found[ladder] = np.polyfit(np.log(heard["T"]), np.log(heard.ratio), 1)[0] if enough else np.nan
    return pd.Series(found, name=credit)


def over(values: pd.Series) -> OverLadders | None:
    """:func:`~replicate.statistics.over_ladders.over_ladders`, or None where a ladder has no number."""
    return None if values.isna().any() else over_ladders(values)


def scored(tables: HorizonTables) -> pd.DataFrame:
    """A row per rung, T and density: :data:`SCORE_AT_T` and :data:`SCORE_AT_ONE`, kappa / sqrt(E|lambda^|^2) under the
    task's reward and of the first token alone, :data:`ROOM` of the reward before, and GRPO's mean gain, ``gained``."""
    gains = mean_gains(tables)
    gains = gains[gains.part == "rungs"]
    whole = gains.merge(tables.longer, on=["ladder", "cell", "step"], validate="one_to_one")
    if len(whole) < len(gains):
        raise ValueError(f"longer: expected a row for each of {len(gains)} rungs and cells, got {len(whole)}")
    size = {name: whole[f"{name}_empirical"] for name in ("whole", "first")}
    found = {
        name: whole[f"{name}_kappa"] / np.sqrt(size[name].where(size[name] > 0, 1.0))
        for name in ("whole", "first")
    }
    named = {
        SCORE_AT_T: found["whole"],
        SCORE_AT_ONE: found["first"],
        ROOM: whole.before * (1 - whole.before),
    }
    return whole[["ladder", "cell", "T", "density", "step", "before", "gained"]].assign(**named)


def orders(
    frame: pd.DataFrame, scores: Sequence[str] = (SCORE_AT_T, SCORE_AT_ONE, ROOM), *, gain: str = "gained"
) -> pd.DataFrame:
    """Rank correlation of each score with the gain over the rungs of a ladder: ``density, T, ladder, score,
    spearman``; 0 where score or gain is constant, which orders nothing."""
    rows = []
    for (density, T, ladder), own in frame.groupby(["density", "T", "ladder"]):
        for score in scores:
            r = spearman(own[score], own[gain])
            where = {"density": density, "T": T, "ladder": ladder, "score": score}
            rows.append({**where, "spearman": 0.0 if np.isnan(r) else r})
    return pd.DataFrame(rows)


def margins(wide: pd.DataFrame, method: str = "ppo") -> pd.DataFrame:
    """The gain of ``method`` less that of the better of each set of :data:`RIVALS`, the better one on each ladder:
    ``rivals, density, T, group, ladder, margin``. A set is compared with where all of its methods were run."""
    rows = []
    for _, T, density, group in wide[[method]].columns:
        for rivals, names in RIVALS[density].items():
            others = [(name, T, density, group) for name in names]
            if not set(others) <= set(wide.columns):
                continue
            margin = wide[method, T, density, group] - wide[others].max(axis=1)
            where = {"rivals": rivals, "density": density, "T": T, "group": group}
            rows += [{**where, "ladder": ladder, "margin": x} for ladder, x in margin.items()]
    return pd.DataFrame(rows)


def areas(trl: pd.DataFrame, *, until: int | None = None) -> pd.DataFrame:
    """The mean reward of each seed over its updates (the first ``until``): ``trainer``, and the columns "TRL" and
    "ours", each a list with one number a seed."""
    own = trl if until is None else trl[trl["update"] < trl["update"].min() + until]
    mean = own.groupby(["trainer", "whose", "seed"]).reward.mean()
    return mean.groupby(level=["trainer", "whose"]).agg(list).unstack()


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """By how many standard errors the means of two samples of seeds differ; ``ValueError`` for fewer than two seeds."""
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if min(len(one), len(other)) < 2:
        raise ValueError(f"seeds: expected at least 2 on either side, got {len(one)} and {len(other)}")
    error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return float((one.mean() - other.mean()) / error) if error > 0 else float("inf")


def word(found: OverLadders | None) -> str:
    """Of what must be above 0, by its interval over ladders; without one it is undecided."""
    if found is None:
        return "undecided"
    return "confirmed" if found.low > 0 else "refuted" if found.high < 0 else "undecided"


def word_not_above(found: Mapping[Any, OverLadders], margin: float) -> str:
    """Of what must not be above 0: confirmed if all intervals end below ``margin``, a gain that counts as none; refuted
    if one begins above 0."""
    if any(one.low > 0 for one in found.values()):
        return "refuted"
    return "confirmed" if all(one.high < margin for one in found.values()) else "undecided"
