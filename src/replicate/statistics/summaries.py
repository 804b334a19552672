"""Summaries with their uncertainty: over prompts, over models, of positive numbers, of whole numbers."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats


def geometric_mean(values, *, confidence: float = 0.95) -> dict[str, float]:
    """``mean``: the geometric mean of positive ``values``; ``low``, ``high``: Student's interval of the mean logarithm.

    Raises ``ValueError`` for fewer than two values or any that is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if values.size < 2 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"values: expected at least 2, positive and finite, got {values!r}")
    logs = np.log(values)
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    ends = np.exp(logs.mean() + half * np.array([0.0, -1.0, 1.0]))
    return dict(zip(("mean", "low", "high"), ends.tolist(), strict=True))


def quartile_text(values) -> str:
    """Median of whole numbers with the quartiles in brackets, as in ``"22 (4-50)"``; each is one of the values."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), method="nearest")
    return f"{median:.0f} ({low:.0f}-{high:.0f})"


def median_interval(values, *, level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): the order statistics that hold the median with at least ``level``, whatever the law.

    Raises ``ValueError`` for fewer than six values, where no such interval of 95 % exists.
    """
    values = np.sort(np.asarray(values, dtype=float))
    if len(values) < 6:
        raise ValueError(f"values: expected at least 6, got {len(values)}")
    k = int(stats.binom.ppf((1 - level) / 2, len(values), 0.5))
    # P(fewer than k of n lie below the median) is under (1 - level) / 2, so the k-th smallest is low enough.
    return float(np.median(values)), float(values[k - 1]), float(values[-k])


def rank_correlation(
    frame: pd.DataFrame, x: str, y: str, *, within: Sequence[str] = (), by: str = "stage"
) -> pd.DataFrame:
    """Spearman's correlation of two columns, one number a prompt, averaged by :func:`over_prompts`.

    ``within`` names columns (``["layer", "head", "t"]``) whose group means are first taken off both, so that only what
    differs between prompts is left.
    """
    frame = frame[[by, "prompt", x, y, *within]].copy()
    if within:
        for column in (x, y):
            frame[column] -= frame.groupby([by, *within])[column].transform("mean")
    return over_prompts(frame, lambda rows: rows[x].corr(rows[y], method="spearman"), by=by)


def over_prompts(
    frame: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], *, by: str = "stage"
) -> pd.DataFrame:
    """``statistic`` of each prompt's rows, then per value of ``by``, in the order of the frame: ``mean`` over prompts,
    its standard error ``se``, the number of ``prompts``, and ``low`` and ``high``, the mean less and plus 3 se.

    Raises ``ValueError`` for a group with fewer than two prompts.
    """
    columns = [c for c in frame.columns if c not in (by, "prompt")]
    numbers = frame.groupby([by, "prompt"], sort=False)[columns].apply(statistic).groupby(by, sort=False)
    table = numbers.agg(["mean", "sem", "count"])
    if table["count"].min() < 2:
        raise ValueError(f"frame: expected at least 2 prompts for each {by}, got {table['count'].min()}")
    table.columns = ["mean", "se", "prompts"]
    return table.assign(low=table["mean"] - 3 * table["se"], high=table["mean"] + 3 * table["se"])
