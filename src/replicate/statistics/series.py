"""Statistics over checkpoints, which are neighbours in time and not independent.

Intervals come from circular block bootstraps (``arch``), never from the iid formulae; p-values of regressions use HAC
standard errors (``statsmodels``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

Series = np.ndarray | pd.Series | Sequence
"""One number per checkpoint, in the order of the ladder."""


@dataclass(frozen=True)
class Estimate:
    """A statistic over checkpoints with its block-bootstrap percentile interval."""

    value: float
    low: float
    high: float


def spearman(x: Series, y: Series) -> float:
    """Rank correlation; NaN if either is constant."""
    return float("nan") if _constant(x) or _constant(y) else float(stats.spearmanr(x, y).statistic)


def pearson(x: Series, y: Series) -> float:
    """Linear correlation; NaN if either is constant."""
    return float("nan") if _constant(x) or _constant(y) else float(stats.pearsonr(x, y).statistic)


def partial_spearman(x: Series, y: Series, given: Series) -> float:
    """Rank correlation of x and y with the ranks of ``given`` regressed out of both."""
    rank_x, rank_y, rank_given = (stats.rankdata(v) for v in (x, y, given))
    return pearson(_residual(rank_x, rank_given), _residual(rank_y, rank_given))


def block_length(checkpoints: int) -> int:
    """Block length of the bootstraps: the cube-root rule times two, at least 3."""
    return min(checkpoints, max(3, round(2 * checkpoints ** (1 / 3))))


def block_interval(
    statistic: Callable[..., float], *series: Series, resamples: int, seed: int, level: float = 0.95
) -> Estimate:
    """``statistic`` of the given series with a circular-block-bootstrap interval; resamples with NaN are left out."""
    from arch.bootstrap import CircularBlockBootstrap

    arrays = [np.asarray(s, dtype=float) for s in series]
    bootstrap = CircularBlockBootstrap(
        block_length(len(arrays[0])), *arrays, seed=np.random.default_rng(seed)
    )
    draws = np.array([statistic(*data) for data, _ in bootstrap.bootstrap(resamples)])
    draws = draws[np.isfinite(draws)]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (np.nan, np.nan)
    return Estimate(float(statistic(*arrays)), float(low), float(high))


def shift_p_value(statistic: Callable[[Series, Series], float], x: Series, y: Series) -> float:
    """Share of all circular shifts of x (no shift included) whose statistic is at least as large.

    Shifting keeps each series' own smoothness and breaks their alignment, which shuffling would not: a null for
    neighbours that are alike.
    """
    x = np.asarray(x, dtype=float)
    values = np.array([statistic(np.roll(x, k), y) for k in range(len(x))])
    return float(np.mean(values >= values[0] - 1e-12))


def zscore(x: Series) -> Series:
    """Centred and scaled to unit (population) variance over checkpoints; zeros if constant."""
    x = np.asarray(x, dtype=float)
    return np.zeros_like(x) if _constant(x) else (x - x.mean()) / x.std()


def affine_fit(x: Series, y: Series, *, rising: bool = False) -> Series:
    """The least-squares prediction a + b x of y; with ``rising``, among b >= 0 only."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if _constant(x) or (rising and np.cov(x, y)[0, 1] <= 0):
        return np.full(len(y), y.mean())
    return np.poly1d(np.polyfit(x, y, 1))(x)


def left_out_r2(predictors: Float[np.ndarray, "checkpoints ..."], y: Series, *, gap: int = 0) -> float:
    """R^2 of predicting each checkpoint by a linear fit to the others, its ``gap`` neighbours a side left out.

    1 - sum of squared prediction errors / sum of squares about the prediction by the others' mean; below zero where
    the predictors are worse than that mean.
    """
    y = np.asarray(y, dtype=float)
    design = np.column_stack([np.ones(len(y)), np.asarray(predictors, dtype=float).reshape(len(y), -1)])
    errors, spread = [], []
    for i in range(len(y)):
        keep = np.abs(np.arange(len(y)) - i) > gap
        keep[i] = False
        weights, *_ = np.linalg.lstsq(design[keep], y[keep], rcond=None)
        errors.append(y[i] - design[i] @ weights)
        spread.append(y[i] - y[keep].mean())
    return float(1 - np.square(errors).sum() / np.square(spread).sum())


def hac_slope(x: Series, y: Series, *, controls: Series | None = None) -> tuple[float, float, float]:
    """Slope of z(y) on z(x) (controls beside it), its HAC standard error and p-value."""
    import statsmodels.api as sm

    columns = [zscore(x)] + ([] if controls is None else [zscore(controls)])
    design = sm.add_constant(np.column_stack(columns))
    fit = sm.OLS(zscore(y), design).fit(cov_type="HAC", cov_kwds={"maxlags": block_length(len(design))})
    return float(fit.params[1]), float(fit.bse[1]), float(fit.pvalues[1])


def _residual(y: Series, x: Series) -> Series:
    return np.asarray(y, dtype=float) - affine_fit(np.asarray(x, dtype=float), np.asarray(y, dtype=float))


def _constant(x: Series) -> bool:
    return bool(np.ptp(np.asarray(x, dtype=float)) == 0)
