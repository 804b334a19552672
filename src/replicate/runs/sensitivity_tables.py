"""What a study of RL's settings found, as tables: the same rungs trained from under many settings, the *cells*."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replicate.runs import study_tables
from replicate.runs.study_tables import RUNG, StudyTables

BASE = "base"
"""The cell with the settings of the main job, in which the rungs were measured."""

FACTORS: dict[str, tuple[str, tuple[Any, Any]]] = {
    "rate": ("rate", (0.25, 4.0)),
    "optimiser": ("OPTIMIZER", ("adamw", "sgd")),
    "scale": ("SCALE", ("std", "none")),
    "reward": ("METHOD", ("surrogate", "shift")),
    "reward scale": ("REWARD_SCALE", (0.5, 2.0)),
    "prompts": ("PROMPTS", (8, 32)),
    "group": ("GROUP_SIZE", (4, 16)),
    "KL weight": ("KL_COEF", (0.0, 0.1)),
    "iterations": ("ITERATIONS", (1, 4)),
}
"""The factors of the fraction: the setting that each one moves, its low and its high level."""

LEVELS = {name: levels for name, (_, levels) in FACTORS.items()}

CENTRES = {
    "learning rate": (BASE, "1"),
    "std": (BASE, "std"),
    "reward": (BASE, "0/1"),
    "reward scale with std": (BASE, "1"),
    "reward scale under SGD without std": ("sgd no std", "1"),
    "prompts": (BASE, "16"),
    "group": (BASE, "8"),
    "KL weight": (BASE, "0"),
    "iterations": (BASE, "1"),
    "clip at 8 iterations": ("iterations 8", "0.2"),
}
"""Around which cell a curve moves one factor, and the factor's level there; the other curves hold their own centre."""

LEAST = 0.5
"""The share of a cell's runs on a ladder that must have come to their end for its gains to be compared."""

_TABLES = ("cells", "gains", "alarms", "failures", "checkpoints", "components", "forecast")


@dataclass(frozen=True)
class SensitivityTables:
    """``cells``: a row a cell with all its settings; ``gains``: a row per ladder, cell, rung, seed and budget;
    ``alarms``: a row per alarm that went off in a run; ``failures``: a row per run that broke; ``study``: the rungs as
    they were measured, with the gains of the cell :data:`BASE`."""

    cells: pd.DataFrame
    gains: pd.DataFrame
    alarms: pd.DataFrame
    failures: pd.DataFrame
    study: StudyTables

    @property
    def said(self) -> dict[str, Any]:
        """The study's own description."""
        return self.study.said


def load(folder: Path) -> SensitivityTables:
    """The tables of a published study of settings; ``ValueError`` with one line if they are not there."""
    try:
        said = json.loads((folder / "study.json").read_text())
        found = {name: _widened(pd.read_parquet(folder / f"{name}.parquet")) for name in _TABLES}
    except OSError as error:
        how = f"run `replicate study -f params/sensitivity.yaml --publish {folder}`"
        raise ValueError(
            f"{folder}: no published study of RL's settings ({error.strerror or error}); {how}"
        ) from None
    cells, gains, alarms, failures = (found.pop(name) for name in ("cells", "gains", "alarms", "failures"))
    if unknown := (set(gains.cell) | set(failures.cell)) ^ set(cells.cell):
        raise ValueError(f"{folder}: expected gains of exactly its cells, got {sorted(unknown)} on one side")
    return SensitivityTables(
        cells, gains, alarms, failures, StudyTables(gains=gains[gains.cell == BASE], said=said, **found)
    )


def _widened(table: pd.DataFrame) -> pd.DataFrame:
    """float32 as the shortest float64 that rounds to it, so that a setting of 0.1 is 0.1 again."""
    narrow = table.select_dtypes("float32")
    return table.assign(
        **{name: column.map(lambda x: float(str(np.float32(x)))) for name, column in narrow.items()}
    )


def rungs(tables: SensitivityTables) -> pd.DataFrame:
    """One row per ladder and rung, as :func:`replicate.runs.study_tables.frame` makes it of the cell :data:`BASE`, with
    the columns ``kappa_grpo`` and ``empirical_grpo`` under GRPO's own advantages."""
    weighted = study_tables.reading(tables.study, advantage="grpo")[[*RUNG, "kappa", "empirical"]]
    frame = study_tables.frame(tables.study)
    return frame.merge(weighted, on=RUNG, suffixes=("", "_grpo"), validate="one_to_one")


def finished(tables: SensitivityTables) -> pd.Series:
    """By cell the share of runs that came to their end, on the ladder where it is least."""
    runs = tables.gains.drop_duplicates(["cell", *RUNG, "seed"]).groupby(["cell", "ladder"]).size()
    broke = tables.failures.groupby(["cell", "ladder"]).size()
    whole = runs.add(broke, fill_value=0)
    share = runs.reindex(whole.index, fill_value=0) / whole
    return share.groupby(level="cell").min().reindex(tables.cells.cell)


def responses(tables: SensitivityTables, budgets: list[int], *, by_budget: bool = False) -> pd.DataFrame:
    """The mean gain over ``budgets`` and seeds of every cell and rung, with what was measured at the rung beside it.

    Cells of which less than :data:`LEAST` of the runs on some ladder came to their end are left out.
    With ``by_budget`` a row for each budget that the cell was run to, of ``budgets``. ``ValueError`` names a cell that
    lacks one of the budgets, unless ``by_budget``.
    """
    share = finished(tables)
    whole = share.index[share >= LEAST]
    gains = tables.gains[tables.gains.budget.isin(budgets) & tables.gains.cell.isin(whole)]
    if not by_budget:
        count = gains.groupby("cell").budget.nunique().reindex(whole, fill_value=0)
        if short := count.index[count < len(budgets)].tolist():
            raise ValueError(
                f"budgets: expected cells that were run to {budgets}, got {short[0]!r} that was not"
            )
    keys = ["cell", *RUNG, *(["budget"] if by_budget else [])]
    mean = gains.groupby(keys, sort=False).gain.mean().reset_index()
    measured = rungs(tables)
    return mean.merge(measured[[c for c in measured if not c.startswith(("gain", "post"))]], on=RUNG)


def factorial(tables: SensitivityTables, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``frame`` (with a column ``cell``) that belong to the fraction, with a column for each of
    :data:`FACTORS`."""
    own = tables.cells[tables.cells.group == "factorial"]
    settings = own[["cell"]].assign(**{name: own[column] for name, (column, _) in FACTORS.items()})
    kept = frame[[name for name in frame if name not in settings or name == "cell"]]
    return kept.merge(settings, on="cell", validate="many_to_one")


def curves(tables: SensitivityTables) -> pd.DataFrame:
    """Which cells a one-factor curve runs through: ``factor, level, cell``, levels in ascending order (words as they
    come, the centre first)."""
    own = tables.cells[(tables.cells.group == "one-factor") & (tables.cells.factor != "")]
    parts = []
    for name, rows in own.groupby("factor", sort=False):
        curve = rows[["factor", "level", "cell"]]
        if name in CENTRES:
            cell, level = CENTRES[name]
            centre = pd.DataFrame([{"factor": name, "level": level, "cell": cell}])
            curve = pd.concat([centre, curve])
        number = pd.to_numeric(curve.level, errors="coerce")
        curve = curve.assign(level=[_plain(level) for level in curve.level])
        parts.append(curve if number.isna().any() else curve.iloc[np.argsort(number, kind="stable")])
    return pd.concat(parts, ignore_index=True)


def _plain(level: str) -> str:
    """A number without superfluous digits, a word as it is."""
    try:
        return f"{float(level):g}"
    except ValueError:
        return level


def labels(tables: SensitivityTables) -> pd.Series:
    """What figures call the cells, by cell: a cell that moves one factor by its name, one of the fraction by optimiser,
    scale, rate, and the letters of its other factors that are high. Neighbours are alike."""
    kinds = tables.cells.group.map({"one-factor": 0, "factorial": 1})
    order = tables.cells.assign(kind=kinds).sort_values(["kind", "OPTIMIZER", "SCALE", "rate"], kind="stable")
    order = pd.concat([tables.cells[kinds == 0], order[order.kind == 1]])
    words = [row.cell if row.group == "one-factor" else _run(row) for row in order.itertuples()]
    return pd.Series(words, index=order.cell)


def _run(row: Any) -> str:
    optimiser = {"adamw": "AdamW", "sgd": "SGD"}[row.OPTIMIZER] + (", no std" if row.SCALE == "none" else "")
    others = "".join(letter for letter in row.level if letter not in "ABC")
    return f"{optimiser}, x {row.rate:g}: {others or '-'}"


def alarm_shares(tables: SensitivityTables) -> pd.DataFrame:
    """By cell and alarm the share of all updates at which it went off, over all ladders, rungs and seeds: a row a cell,
    a column an alarm, those that never went off anywhere left out."""
    runs = tables.gains.groupby(["cell", *RUNG, "seed"], sort=False).budget.max()
    done = runs.groupby(level="cell", sort=False).sum()
    table = tables.alarms.pivot_table(
        index="cell", columns="alarm", values="updates", aggfunc="sum", fill_value=0
    )
    return table.reindex(tables.cells.cell, fill_value=0).div(done.reindex(tables.cells.cell), axis=0)
