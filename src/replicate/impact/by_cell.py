"""How well scores order the gain under each setting of RL, and how far a gain has come: one number a cell and ladder.

A *cell* is one setting of RL. A score is measured once a rung, whichever cell trains from it, so that cells share it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from replicate.impact.scores import LAW, PILOT, RIVALS
from replicate.statistics.over_ladders import over_ladders, require_rows

if TYPE_CHECKING:
    import pandas as pd

ROOM = "1 - J_0"
"""What is left to gain: the score that a saturated gain follows."""

KAPPA, LAW_THETA = "kappa, GRPO's advantages", "law in parameter space"

_PICKED = (
    "S = (V - Delta) H, one costate",
    "V",
    "V H",
    "J_0 (1 - J_0)",
    "|grad_theta J|^2",
    "entropy",
    "J_0",
)

SCORES: "dict[str, Callable[[pd.DataFrame], pd.Series]]" = {
    LAW: RIVALS[LAW],
    LAW_THETA: lambda frame: frame.normalised_theta,
    KAPPA: lambda frame: frame.kappa_grpo,
    **{name: RIVALS[name] for name in _PICKED},
    ROOM: lambda frame: 1 - frame.J0,
    PILOT: RIVALS[PILOT],
}
"""What is asked to order the gain in every cell. ``kappa_grpo`` is the first-order gain of a step along the gradient
under GRPO's advantages whose length nothing normalises; the pilot is that of the cell in which rungs were measured."""


def ordering(
    frame: "pd.DataFrame",
    scores: "Mapping[str, Callable[[pd.DataFrame], pd.Series]]" = SCORES,
    *,
    by: Sequence[str] = ("cell",),
    gain: str = "gain",
) -> "pd.DataFrame":
    """Rank correlation of every score with ``gain`` over the rungs of a ladder, for each value of ``by``.

    A row per ``by``, ladder and score: ``spearman``, 0 where score or gain is constant, which orders nothing, and the
    number of ``rungs``. Raises ``ValueError`` for a rung that occurs twice, or a gain that is not finite.
    """
    import pandas as pd

    keys = [*by, "ladder"]
    require_rows(frame, *keys, "step", gain, finite=(gain,))
    if frame.duplicated([*keys, "step"]).any():
        raise ValueError(f"frame: expected one row for each {', '.join(keys)} and step, got some twice")
    columns = np.column_stack([np.asarray(of(frame), dtype=float) for of in scores.values()])
    found = []
    for key, rows in frame.groupby(keys, sort=False, observed=True).indices.items():
        order = _rank_correlations(columns[rows], frame[gain].to_numpy(dtype=float)[rows])
        head = dict(zip(keys, key, strict=True)) | {"rungs": len(rows)}
        found += [{**head, "score": name, "spearman": r} for name, r in zip(scores, order, strict=True)]
    return pd.DataFrame(found)[[*keys, "score", "spearman", "rungs"]]


def _rank_correlations(columns: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column [rungs scores] with the gain [rungs]; 0 where one of them is constant."""
    ranks = stats.rankdata(np.column_stack([columns, gain]), axis=0)
    ranks -= ranks.mean(axis=0)
    size = np.sqrt(np.square(ranks).sum(axis=0))
    inner = ranks[:, :-1].T @ ranks[:, -1]
    scale = size[:-1] * size[-1]
    return np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)


def over(
    table: "pd.DataFrame", value: str = "spearman", *, by: Sequence[str] = ("cell", "score")
) -> "pd.DataFrame":
    """``value`` over ladders for every combination of ``by``: its mean with the interval, ``mean, low, high, positive,
    n``; a row a combination, in order of first appearance."""
    import pandas as pd

    rows = []
    for key, own in table.groupby(list(by), sort=False, observed=True):
        found = over_ladders(own[value].to_numpy())
        said = {name: getattr(found, name) for name in ("mean", "low", "high", "positive", "n")}
        rows.append(dict(zip(by, key, strict=True)) | said)
    return pd.DataFrame(rows)


def shares(gains: "pd.DataFrame", *, edges: Sequence[float], by: Sequence[str] = ("cell",)) -> "pd.DataFrame":
    """The share of what there was to gain that has been gained, gain / (1 - J_0), by class of rungs and budget.

    J_0 is ``start``, the reward on the prompts of the gain, and ``edges`` bound its classes. A class's share on a
    ladder is the sum of its gains over that of its rooms 1 - J_0, so that rungs with next to none do not blow it up.
    Columns ``*by, band, budget, ladder, share``; rungs with a start outside the edges are left out.
    """
    import itertools

    import pandas as pd

    labels = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    table = gains[[*by, "ladder", "budget", "gain"]].assign(room=1 - gains["start"])
    table["band"] = pd.cut(gains["start"], list(edges), labels=labels, include_lowest=True)
    keys = [*by, "band", "budget", "ladder"]
    sums = table.groupby(keys, observed=True)[["gain", "room"]].sum()
    return (sums["gain"] / sums["room"]).rename("share").reset_index()


def smallest_as_good(
    gains: "pd.DataFrame", *, level: str = "rate", gain: str = "gain"
) -> "tuple[float, pd.DataFrame]":
    """The smallest ``level`` whose mean gain is within one standard error of the best level's, and the table behind it.

    ``gains`` has one row per level and ladder. The standard error is that of the best level's mean, over ladders. The
    table has a row a level, ascending: ``mean, error``, and whether it is ``as_good``. No predictor is looked at.
    ``ValueError`` for fewer than two ladders, or ladders that have not all levels.
    """
    require_rows(gains, "ladder", level, gain, finite=(gain,))
    wide = gains.pivot(index="ladder", columns=level, values=gain).sort_index(axis=1)
    if len(wide) < 2 or wide.isna().any(axis=None):
        raise ValueError(f"gains: expected every {level} on at least 2 ladders, got {wide.count().to_dict()}")
    table = wide.agg(["mean", "sem"]).T.rename(columns={"sem": "error"})
    best = table.loc[table["mean"].idxmax()]
    table["as_good"] = table["mean"] >= best["mean"] - best["error"]
    return float(table.index[table["as_good"]][0]), table
