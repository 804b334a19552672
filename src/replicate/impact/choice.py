"""From scores to a checkpoint: where RL should start (31), and what a wrong choice costs."""

import numpy as np

from replicate.statistics.series import Series


def choose_checkpoint(scores: Series) -> int:
    """(31): the index of the largest score, the first one in a tie; ``ValueError`` for none or NaN."""
    if len(scores) == 0 or any(score != score for score in scores):
        raise ValueError(f"scores: expected at least one number and no NaN, got {list(scores)}")
    return int(np.argmax(scores))


def regret(scores: Series, gains: Series) -> float:
    """Gain lost by starting RL at the checkpoint with the largest score, as a share of the largest gain: 0 at best.

    ``ValueError`` unless the largest gain is above 0: a share of nothing says nothing.
    """
    gains = np.asarray(gains, dtype=float)
    return 1 - float(gains[choose_checkpoint(np.asarray(scores, dtype=float))]) / _best(gains)


def regret_of_chance(gains: Series) -> float:
    """The expected :func:`regret` of a checkpoint drawn at random."""
    gains = np.asarray(gains, dtype=float)
    best = _best(gains)
    return 1 - float(gains.mean()) / best


def _best(gains: np.ndarray) -> float:
    if len(gains) == 0 or not gains.max() > 0:
        raise ValueError(f"gains: expected at least one above 0, got {gains.tolist()}")
    return float(gains.max())
