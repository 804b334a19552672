"""Statistics whose unit of evidence is the ladder: one pretraining run with all its rungs, and no single rung (B14).

Rungs of a ladder share its initialisation and its data, so they tell of one draw. An interval here is over ladders, a
prediction is judged on a ladder it has not seen, and two predictors are compared by their difference on each ladder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from replicate.statistics.series import Series, spearman
from replicate.statistics.splines import Basis


@dataclass(frozen=True)
class OverLadders:
    """The mean of one number a ladder over ``n`` ladders, with Student's interval and the signs beside it.

    ``p`` is Student's two-sided p-value of a mean of zero. ``positive`` counts the ladders above zero. ``sign_p`` is
    the exact two-sided p-value of their signs, ladders at zero left out; it assumes nothing of the shape, and with
    fewer than 6 ladders it cannot fall below 0.05.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    positive: int
    sign_p: float

    def text(self, digits: int = 2) -> str:
        """As in ``"+0.42 [+0.31, +0.53], 12 of 12 ladders"``; the count is of those above zero."""
        mean, low, high = (f"{number:+.{digits}f}" for number in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}], {self.positive} of {self.n} ladders"


def over_ladders(values: Series, *, level: float = 0.95) -> OverLadders:
    """The mean of ``values``, one number a ladder, with Student's interval at ``level`` and the exact sign test.

    Raises ``ValueError`` for fewer than two values or any that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"values: expected at least 2 finite numbers, one a ladder, got {values.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    from statsmodels.stats.weightstats import DescrStatsW

    found, n = DescrStatsW(values), len(values)
    (low, high), mean = found.tconfint_mean(alpha=1 - level), float(found.mean)
    # Ladders that all agree have no spread to test against: certain, unless it is zero they agree on.
    p = float(found.ttest_mean(0)[1]) if np.ptp(values) else float(mean == 0)
    positive, signed = int((values > 0).sum()), int((values != 0).sum())
    sign_p = float(stats.binomtest(positive, signed).pvalue) if signed else 1.0
    return OverLadders(n, mean, float(low), float(high), p, positive, sign_p)


def holm(family: Mapping[str, OverLadders]) -> pd.Series:
    """Student's p-values of a family of findings, corrected for their number after Holm; by name, in the order given.

    Calling those below 0.05 decided is wrong on any true zero of the family with a chance of at most 0.05, however
    the findings hang together.
    """
    from statsmodels.stats.multitest import multipletests

    if not family:
        raise ValueError("family: expected at least one finding, got none")
    corrected = multipletests([found.p for found in family.values()], method="holm")[1]
    return pd.Series(corrected, index=list(family), name="Holm's p")


def paired(values: Series, rivals: Series, *, level: float = 0.95) -> OverLadders:
    """:func:`over_ladders` of ``values`` less ``rivals``, ladder by ladder: how far one predictor is ahead of another.

    Two series of pandas are matched by their labels. Raises ``ValueError`` for lengths or labels that differ.
    """
    if len(values) != len(rivals):
        raise ValueError(f"rivals: expected {len(values)} numbers, one a ladder, got {len(rivals)}")
    if (
        isinstance(values, pd.Series)
        and isinstance(rivals, pd.Series)
        and not values.index.equals(rivals.index)
    ):
        if set(values.index) != set(rivals.index) or not values.index.is_unique:
            raise ValueError(f"rivals: expected ladders {list(values.index)}, got {list(rivals.index)}")
        rivals = rivals.reindex(values.index)
    return over_ladders(np.asarray(values, dtype=float) - np.asarray(rivals, dtype=float), level=level)


def by_ladder(
    frame: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], *, ladder: str = "ladder"
) -> pd.Series:
    """``statistic`` of each ladder's rows, indexed by ladder in order of first appearance."""
    require_rows(frame, ladder)
    numbers = {
        name: float(statistic(rows)) for name, rows in frame.groupby(ladder, sort=False, observed=True)
    }
    return pd.Series(numbers, dtype=float).rename_axis(ladder)


class Line(NamedTuple):
    """The prediction ``intercept`` + ``slope`` x; with several columns ``slope`` has one entry for each."""

    intercept: float
    slope: float | Float[np.ndarray, " columns"]

    def predict(self, design: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, " n"]:
        """The prediction for each row of ``design``."""
        return self.intercept + design @ np.atleast_1d(self.slope)


def left_out_ladder(
    frame: pd.DataFrame,
    x: str | Sequence[str],
    y: str,
    *,
    rising: bool = True,
    ladder: str = "ladder",
    basis: Basis | None = None,
) -> pd.DataFrame:
    """How well each ladder's ``y`` is predicted by a + b ``x`` fitted to all other ladders; one row a ladder.

    See :func:`predict_ladders` for the fit and the columns. A ``basis`` must come with knots that hang on no y; knots
    at quantiles of ``x`` over all ladders will do. Raises ``ValueError`` also for fewer than two ladders.
    """
    require_rows(frame, ladder)
    names = list(frame[ladder].unique())
    if len(names) < 2:
        raise ValueError(f"frame: expected at least 2 ladders, got {len(names)}")
    held_out = [
        predict_ladders(rest, rows, x, y, rising=rising, basis=basis, ladder=ladder)[0]
        for rest, rows in ((frame[frame[ladder] != name], frame[frame[ladder] == name]) for name in names)
    ]
    return pd.concat(held_out)


def predict_ladders(
    train: pd.DataFrame,
    test: pd.DataFrame,
    x: str | Sequence[str],
    y: str,
    *,
    rising: bool = True,
    basis: Basis | None = None,
    ladder: str = "ladder",
) -> tuple[pd.DataFrame, Line]:
    """How well a line fitted to the ladders of ``train`` predicts each ladder of ``test``, and the line.

    The fit is least squares with each ladder of ``train`` counting alike, whatever its number of rungs. With
    ``rising`` the slope of a single ``x`` is kept from falling below zero; it does not apply to several columns nor to
    a ``basis``, which turns one ``x`` into a design matrix. The table has, for each ladder of ``test``,

    - ``r2``: 1 - squared errors / squares about that ladder's *own* mean, which the fit does not know; so it may be
      negative for a predictor that is good within ladders but does not know their level. NaN if y is constant;
    - ``spearman``: rank correlation of prediction and y; NaN if either is constant, as for a slope held at zero;
    - ``bias``: mean of prediction - y, and ``rmse``, the root of the mean squared error, both in units of y.

    Raises ``ValueError`` for a column that is missing or not finite, or a basis with several x.
    """
    design, outcome = _columns(train, x, y, basis, ladder)
    line = _fit(design, outcome, _ladder_weights(train[ladder]), rising=rising and basis is None)
    unseen, truth = _columns(test, x, y, basis, ladder)
    judged = test[[ladder]].assign(y=truth, predicted=line.predict(unseen))
    groups = judged.groupby(ladder, sort=False, observed=True)
    table = pd.DataFrame({name: _marks(rows["predicted"], rows["y"]) for name, rows in groups}).T
    single = isinstance(x, str) and basis is None
    return table.rename_axis(ladder), line._replace(slope=float(line.slope[0])) if single else line


def pairs(
    frame: pd.DataFrame, *, on: str, within: float, ladder: str = "ladder", disjoint: bool = False
) -> pd.DataFrame:
    """All pairs of rows of different ladders whose ``on`` differs by less than ``within``: their labels ``i``, ``j``.

    ``i`` comes before ``j`` in the order of the labels, and so do the pairs, whatever the order of the rows. With
    ``disjoint`` a row is in at most one pair: the closest pair is taken first (of equally close ones that with the
    first labels), then the closest of the rows that are left. This is greedy, and need not find the most pairs. Raises
    ``ValueError`` for labels that occur twice or an ``on`` that is not finite.
    """
    require_rows(frame, ladder, on, finite=(on,))
    if not frame.index.is_unique:
        raise ValueError("frame: expected labels that occur once each, got some twice")
    ordered = frame.sort_index()
    number, ladders = ordered[on].to_numpy(dtype=float), pd.factorize(ordered[ladder])[0]
    close = [
        a
        + 1
        + np.flatnonzero((np.abs(number[a + 1 :] - number[a]) < within) & (ladders[a + 1 :] != ladders[a]))
        for a in range(len(number))
    ]
    first = np.repeat(np.arange(len(number)), [len(partners) for partners in close])
    second = np.concatenate([*close, np.empty(0, dtype=int)]).astype(int)
    if disjoint:
        taken = _closest_first(first, second, np.abs(number[first] - number[second]), len(number))
        first, second = first[taken], second[taken]
    return pd.DataFrame({"i": ordered.index[first], "j": ordered.index[second]})


def concordance(
    frame: pd.DataFrame,
    pair_table: pd.DataFrame,
    score: str,
    outcome: str,
    *,
    ladder: str = "ladder",
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """How often, of two rows of different ladders, the one of higher ``score`` has the higher ``outcome``.

    ``share``: that share of the ``pairs`` of ``pair_table`` whose outcomes differ, where equal scores count one half;
    NaN without such pairs. ``low``, ``high``: percentiles over ``resamples`` draws of the ladders of ``frame`` with
    replacement, where a pair counts as often as its two ladders were drawn, multiplied. Pairs that share a ladder hang
    together, so pairs as such are never drawn; the price is an interval that is too wide, by up to sqrt(3), where pairs
    have little to do with each other, as disjoint ones may. Raises ``ValueError`` for labels that ``frame`` has not, or
    two rows of one ladder.
    """
    require_rows(frame, ladder, score, outcome, finite=(score, outcome))
    rows_i, rows_j = (_rows_of(frame, pair_table[side], side) for side in ("i", "j"))
    names, ladders = np.unique(frame[ladder].to_numpy(), return_inverse=True)
    if (ladders[rows_i] == ladders[rows_j]).any():
        raise ValueError("pair_table: expected rows of different ladders, got some of one")
    higher, scored = (
        np.sign(column[rows_i] - column[rows_j])
        for column in (frame[outcome].to_numpy(dtype=float), frame[score].to_numpy(dtype=float))
    )
    won, of = np.zeros((2, len(names), len(names)))
    np.add.at(of, (ladders[rows_i], ladders[rows_j]), higher != 0)
    np.add.at(won, (ladders[rows_i], ladders[rows_j]), (higher != 0) * (1 + higher * scored) / 2)
    if of.sum() == 0:
        return {"share": np.nan, "pairs": 0, "low": np.nan, "high": np.nan}
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), resamples
    )
    counted = np.einsum("ra,ab,rb->r", drawn, of, drawn)
    shares = np.einsum("ra,ab,rb->r", drawn, won, drawn)[counted > 0] / counted[counted > 0]
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2]) if len(shares) else (np.nan, np.nan)
    return {
        "share": float(won.sum() / of.sum()),
        "pairs": int(of.sum()),
        "low": float(low),
        "high": float(high),
    }


def _fit(
    design: Float[np.ndarray, "n columns"],
    y: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    *,
    rising: bool,
) -> Line:
    """Weighted least squares on centred and scaled columns, so that the fit does not hang on the units of x."""
    centre, level = np.average(design, axis=0, weights=weights), np.average(y, weights=weights)
    centred = np.where(np.ptp(design, axis=0) == 0, 0.0, design - centre)
    scale = np.sqrt(np.average(centred**2, axis=0, weights=weights))
    scale[scale == 0] = 1.0
    root = np.sqrt(weights)
    slope = np.linalg.lstsq(root[:, None] * centred / scale, root * (y - level), rcond=None)[0] / scale
    if rising and len(slope) == 1:
        slope = np.maximum(slope, 0.0)
    return Line(float(level - centre @ slope), slope)


def _marks(predicted: pd.Series, y: pd.Series) -> dict[str, float]:
    error = (predicted - y).to_numpy()
    square, spread = float((error**2).sum()), float(((y - y.mean()) ** 2).sum())
    r2 = 1 - square / spread if np.ptp(y) > 0 else np.nan
    rank = spearman(predicted, y)
    return {"r2": r2, "spearman": rank, "bias": float(error.mean()), "rmse": (square / len(error)) ** 0.5}


def _columns(
    frame: pd.DataFrame, x: str | Sequence[str], y: str, basis: Basis | None, ladder: str
) -> tuple[Float[np.ndarray, "n columns"], Float[np.ndarray, " n"]]:
    names = [x] if isinstance(x, str) else list(x)
    require_rows(frame, ladder, *names, y, finite=(*names, y))
    if basis is not None and len(names) != 1:
        raise ValueError(f"x: expected one column for a basis, got {names}")
    design = frame[names].to_numpy(dtype=float)
    return (design if basis is None else basis(design[:, 0])), frame[y].to_numpy(dtype=float)


def _ladder_weights(ladders: pd.Series) -> Float[np.ndarray, " n"]:
    return 1.0 / ladders.groupby(ladders, observed=True).transform("size").to_numpy(dtype=float)


def _closest_first(first: np.ndarray, second: np.ndarray, distance: np.ndarray, rows: int) -> np.ndarray:
    """Positions of the pairs that a greedy matching takes; pairs stand in the order in which ties are broken."""
    free, taken = np.ones(rows, dtype=bool), []
    for pair in np.argsort(distance, kind="stable"):
        if free[first[pair]] and free[second[pair]]:
            free[first[pair]] = free[second[pair]] = False
            taken.append(pair)
    return np.sort(np.asarray(taken, dtype=int))


def _rows_of(frame: pd.DataFrame, labels: pd.Series, side: str) -> np.ndarray:
    rows = frame.index.get_indexer(labels)
    if (rows < 0).any():
        raise ValueError(
            f"pair_table: expected labels of frame, got {labels[rows < 0].tolist()[:3]} in {side}"
        )
    return rows


def require_rows(frame: pd.DataFrame, *columns: str, finite: Sequence[str] = ()) -> None:
    """Raises ``ValueError`` unless ``frame`` has rows, these columns, no unnamed ladder and no hole in ``finite``."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"frame: expected columns {list(columns)}, got none called {missing}")
    if frame.empty or frame[columns[0]].isna().any():
        raise ValueError(f"frame: expected rows that each name their {columns[0]}, got {len(frame)} rows")
    for column in finite:
        if not np.isfinite(frame[column].to_numpy(dtype=float)).all():
            raise ValueError(f"{column}: expected finite numbers, got some missing or infinite")
