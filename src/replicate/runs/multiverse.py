"""The multiverse of a study: every reading of the score, and how each one orders the gains (B8, B9, B10).

(24)-(31) leave open what the action is, what multiplies the score function, how many costates are averaged before a
norm is taken, how signal and error become one number, at which state, and whether headroom is a factor. A reading is
one choice of all of them. Its number is the rank correlation of score and gain over the rungs of one ladder; a study
has as many such numbers as ladders, and their mean and interval are a point of the specification curve.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from replicate.impact.headrooms import KINDS, PRIMARY_HEADROOM, column_of
from replicate.impact.scores import FORMS, averaged
from replicate.runs.study_tables import RUNG, StudyTables, reading
from replicate.statistics.over_ladders import over_ladders


class Reading(NamedTuple):
    """One choice of everything: the score is ``form`` of V, Delta, kappa, E|lambda^|^2, times the headroom.

    ``n`` is the number of costates that are averaged, ``layer`` that of the state (-1: the final one), ``headroom`` a
    kind of headroom or :data:`WITHOUT`.
    """

    policy: str
    advantage: str
    n: Real
    form: str
    layer: int
    headroom: str


WITHOUT = "none"

CHOICES: dict[str, Sequence[Hashable]] = {
    "policy": ("categorical", "gumbel", "shift"),
    # The group's own mean is left out: its advantages are those of leave_one_out, all times 1 - 1/G.
    "advantage": ("leave_one_out", "reward", "grpo"),
    "n": (1, 8, 128, math.inf),
    "form": ("difference", "normalised", "scale-fitted", "relative", "cosine"),
    "layer": (-1, 2),
    "headroom": (PRIMARY_HEADROOM, WITHOUT),
}
"""What there is to choose, by factor; the first of each is the reading that was fixed before looking."""

PAPER = Reading(*(options[0] for options in CHOICES.values()))
V_H = PAPER._replace(n=math.inf)
LAW = PAPER._replace(advantage="grpo", form="normalised", headroom=WITHOUT)

_TIE = 1e-6  # published numbers are float32, with a relative round-off of 6e-8


def grid(layers: Sequence[int] = CHOICES["layer"]) -> list[Reading]:
    """All readings, the full product of :data:`CHOICES` with these layers."""
    return [Reading(*chosen) for chosen in itertools.product(*(CHOICES | {"layer": layers}).values())]


def correlations(tables: StudyTables, target: pd.Series, readings: Sequence[Reading]) -> pd.DataFrame:
    """Rank correlation of each reading's score with ``target`` on each ladder: a row a reading, a column a ladder.

    ``target`` is indexed by ladder and step. A score that is the same on all rungs of a ladder orders none of them and
    counts as 0. ``ValueError`` for a rung without a measurement.
    """
    ranked = ranks(tables, target.index, readings)
    ladders = target.index.get_level_values(0)
    columns = {}
    for name in ladders.unique():
        ours = np.flatnonzero(ladders == name)
        gains = _unit(stats.rankdata(target.iloc[ours])[None, :])
        columns[name] = (_unit(ranked[:, ours]) @ gains.T)[:, 0]
    return pd.DataFrame(columns, index=_index(readings))


def ranks(
    tables: StudyTables, rungs: pd.MultiIndex, readings: Sequence[Reading]
) -> Float[np.ndarray, "readings rungs"]:
    """The rank of each rung within its ladder under each reading, less its mean: a score that is constant has zeros.

    Scores that are equal but for round-off share a rank.
    """
    score = _scorer(tables, rungs)
    ladders = rungs.get_level_values(0)
    places = [np.flatnonzero(ladders == name) for name in ladders.unique()]
    ranked = np.empty((len(readings), len(rungs)))
    for row, of in zip(ranked, readings, strict=True):
        values = score(of)
        for ours in places:
            found = _ranked(values[ours])
            row[ours] = found - found.mean()
    return ranked


def _scorer(tables: StudyTables, rungs: pd.MultiIndex) -> Callable[[Reading], Float[np.ndarray, " rungs"]]:
    @cache
    def parts(policy: str, advantage: str, layer: int) -> pd.DataFrame:
        found = reading(tables, policy=policy, advantage=advantage, layer=layer).set_index(RUNG)
        if missing := rungs.difference(found.index).tolist():
            raise ValueError(f"target: expected rungs that were measured, got {missing[0]} that was not")
        return found.loc[rungs]

    @cache
    def moments(policy: str, advantage: str, layer: int, n: Real) -> pd.DataFrame:
        return averaged(parts(policy, advantage, layer), n)

    def score(of: Reading) -> Float[np.ndarray, " rungs"]:
        where = (of.policy, of.advantage, of.layer)
        signal = FORMS[of.form](moments(*where, of.n)).to_numpy(dtype=float)
        if of.headroom == WITHOUT:
            return signal
        room = parts(*where)[column_of(of.headroom)].to_numpy(dtype=float)
        return np.where(
            room > 0, signal * np.where(room > 0, room, 1.0), 0.0
        )  # a signal may be minus infinity

    return score


def _ranked(values: Float[np.ndarray, " rungs"]) -> Float[np.ndarray, " rungs"]:
    """Ranks from 1, ties sharing their mean; neighbours in size within :data:`_TIE` of the larger are tied."""
    order = np.argsort(values, kind="stable")
    ordered = np.clip(values[order], -1e300, 1e300)
    apart = np.diff(ordered) > _TIE * np.maximum(abs(ordered[1:]), abs(ordered[:-1]))
    ties = np.empty(len(values))
    ties[order] = np.concatenate([[0], np.cumsum(apart)])
    return stats.rankdata(ties)


def _unit(rows: Float[np.ndarray, "rows rungs"]) -> Float[np.ndarray, "rows rungs"]:
    centred = rows - rows.mean(1, keepdims=True)
    length = np.sqrt(np.square(centred).sum(1, keepdims=True))
    return centred / np.where(length > 0, length, 1.0)


def _index(readings: Sequence[Reading]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(readings, names=Reading._fields)


def coincidences(
    ranked: Float[np.ndarray, "readings rungs"], readings: Sequence[Reading]
) -> dict[Reading, Reading | None]:
    """Readings that say nothing of their own: of each the earliest that orders the rungs of every ladder alike, or None
    for one that orders none.

    Each then has the same rank correlation with anything, and would stand in a curve twice. Ranks and not values are
    compared, and within ladders only: a score and its square are one reading here.
    """
    first: dict[bytes, Reading] = {}
    found: dict[Reading, Reading | None] = {}
    for of, row in zip(readings, ranked, strict=True):
        if not row.any():
            found[of] = None
        elif (twin := first.setdefault(row.tobytes(), of)) != of:
            found[of] = twin
    return found


def reasons(coincide: dict[Reading, Reading | None]) -> pd.DataFrame:
    """How many readings coincide with an earlier one, by what the two differ in; a row for those that order nothing."""
    said = [
        "orders nothing" if twin is None else ", ".join(f for f in Reading._fields if _differ(of, twin, f))
        for of, twin in coincide.items()
    ]
    counts = pd.Series(said, dtype=object).value_counts()
    return counts.rename_axis("differs from its twin in").rename("readings").reset_index()


def _differ(of: Reading, twin: Reading, factor: str) -> bool:
    return getattr(of, factor) != getattr(twin, factor)


def curve(table: pd.DataFrame, coincide: dict[Reading, Reading | None]) -> pd.DataFrame:
    """The specification curve: a row for each reading that stands for itself, sorted by its mean over ladders.

    ``table`` is that of :func:`correlations`. Columns: those of :class:`Reading`, ``mean``, ``low`` and ``high`` (the
    interval over ladders), ``positive`` and ``ladders`` (how many are above zero, of how many).
    """
    kept = table.loc[[of not in coincide for of in table.index]]
    rows = [
        {"mean": e.mean, "low": e.low, "high": e.high, "positive": e.positive, "ladders": e.n}
        for e in map(over_ladders, kept.to_numpy())
    ]
    whole = kept.index.to_frame(index=False).join(pd.DataFrame(rows))
    return whole.sort_values("mean", kind="stable", ignore_index=True)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Which choice matters: shares of the variance of a ladder's correlations over the full grid, by analysis of
    variance; a row for each factor and ladder.

    ``alone``: the variance of the means over all other choices, the main effect. ``total``: the variance that is left
    on average when all other choices are made, so that its interactions count, too; these shares add up to more than 1.
    ``ValueError`` for a ``table`` that lacks a combination of the choices: twins and constant scores belong to it.
    """
    levels = [list(dict.fromkeys(table.index.get_level_values(name))) for name in table.index.names]
    shape = tuple(len(found) for found in levels)
    if not table.index.is_unique or len(table) != math.prod(shape):
        raise ValueError(f"table: expected the full grid of {math.prod(shape)} readings, got {len(table)}")
    cube = table.reindex(pd.MultiIndex.from_product(levels)).to_numpy().reshape(*shape, -1)
    total, axes = _spread(cube), range(len(shape))
    parts = []
    for axis, name in enumerate(table.index.names):
        alone = _spread(cube.mean(axis=tuple(a for a in axes if a != axis)))
        rest = _spread(cube.mean(axis=axis))
        one = {"factor": name, "ladder": table.columns, "alone": alone / total, "total": 1 - rest / total}
        parts.append(pd.DataFrame(one))
    return pd.concat(parts, ignore_index=True)


def _spread(cube: Float[np.ndarray, "..."]) -> Float[np.ndarray, " ladders"]:
    """The variance over all axes but the last, which is the ladders."""
    return cube.reshape(-1, cube.shape[-1]).var(axis=0)


def by_headroom(tables: StudyTables, target: pd.Series) -> pd.DataFrame:
    """What the kind of headroom does to the paper's reading and to its mean costate: a row for each of both and kind.

    Kept out of the curve, which it would more than double.
    """
    readings = [of._replace(headroom=kind) for of in (PAPER, V_H) for kind in (*KINDS, WITHOUT)]
    return curve(correlations(tables, target, readings), {})
