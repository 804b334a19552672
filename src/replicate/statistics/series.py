"""Numbers of the checkpoints of one ladder.

They are neighbours in time and not independent: intervals are over ladders
(:mod:`replicate.statistics.over_ladders`), never over checkpoints.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

Series = np.ndarray | pd.Series | Sequence
"""One number per checkpoint, in the order of the ladder."""


def spearman(x: Series, y: Series) -> float:
    """Rank correlation; NaN if either is constant."""
    return float("nan") if _constant(x) or _constant(y) else float(stats.spearmanr(x, y).statistic)


def pearson(x: Series, y: Series) -> float:
    """Linear correlation; NaN if either is constant."""
    return float("nan") if _constant(x) or _constant(y) else float(stats.pearsonr(x, y).statistic)


def zscore(x: Series) -> Series:
    """Centred and scaled to unit (population) variance over checkpoints; zeros if constant."""
    x = np.asarray(x, dtype=float)
    return np.zeros_like(x) if _constant(x) else (x - x.mean()) / x.std()


def _constant(x: Series) -> bool:
    return bool(np.ptp(np.asarray(x, dtype=float)) == 0)
