"""From scores to a checkpoint: where RL should start (31), what a wrong choice costs, how well scores order gains."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from replicate.statistics.series import (
    Series,
    block_interval,
    left_out_r2,
    partial_spearman,
    shift_p_value,
    spearman,
)

if TYPE_CHECKING:
    import pandas as pd


def choose_checkpoint(scores: Series) -> int:
    """(31): the index of the largest score, the first one in a tie; ``ValueError`` for none or NaN."""
    if len(scores) == 0 or any(score != score for score in scores):
        raise ValueError(f"scores: expected at least one number and no NaN, got {list(scores)}")
    return int(np.argmax(scores))


def regret(scores: Series, gains: Series) -> float:
    """Gain lost by starting RL at the checkpoint with the largest score instead of the one with the largest gain."""
    gains = np.asarray(gains, dtype=float)
    return float(gains.max() - gains[choose_checkpoint(np.asarray(scores, dtype=float))])


def predictors_table(
    frame: "pd.DataFrame",
    predictors: Mapping[str, Series],
    target: str,
    *,
    given: str,
    resamples: int,
    seed: int,
) -> "pd.DataFrame":
    """One row per predictor of ``frame[target]`` over checkpoints: rank correlation with its interval, the partial one
    given ``frame[given]``, the left-out R^2, and the regret of choosing by it (in units of the target)."""
    import pandas as pd

    y, control = frame[target].to_numpy(float), frame[given].to_numpy(float)
    rows = []
    for name, values in predictors.items():
        x = np.asarray(values, dtype=float)
        rank = block_interval(spearman, x, y, resamples=resamples, seed=seed)
        row = {"predictor": name, "spearman": rank.value, "low": rank.low, "high": rank.high}
        row["shift_p"] = shift_p_value(spearman, x, y)
        row["partial"] = float("nan") if np.array_equal(x, control) else partial_spearman(x, y, control)
        row["left_out_R2"] = left_out_r2(x, y, gap=1)
        row["regret"] = regret(x, y)
        rows.append(row)
    return pd.DataFrame(rows)
