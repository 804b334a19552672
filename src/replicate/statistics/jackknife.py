"""What each unit of a sample does to a statistic of means: intervals and paired differences without resampling."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import stats

Means = Float[np.ndarray, "rows columns"]
Statistic = Callable[[Means], Float[np.ndarray, " rows"]]


def influence(
    columns: Float[np.ndarray, "units columns"], statistic: Statistic
) -> Float[np.ndarray, " units"]:
    """One value a unit whose mean is ``statistic`` of the columns' means, and whose spread is its uncertainty.

    The jackknife: T + (n - 1)(mean of T_-i - T_-i), with T_-i the statistic without unit i. Of a mean they are the
    units' own numbers. Student's interval of their mean is the interval of T over units, and differences of two
    statistics of the same units are compared value by value. ``statistic`` maps rows of means to a number each.
    ``ValueError`` for fewer than two units.
    """
    n = len(columns)
    if n < 2:
        raise ValueError(f"columns: expected at least 2 units, got {n}")
    means = columns.mean(0)
    without = statistic(means + (means - columns) / (n - 1))
    return statistic(means[None]) + (n - 1) * (without.mean() - without)


def interval(values: Float[np.ndarray, " units"], *, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of :func:`influence` and the ends of Student's interval around it."""
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half
