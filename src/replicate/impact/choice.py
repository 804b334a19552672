"""From scores to a checkpoint: where RL should start (31), and what a wrong choice costs."""

from collections.abc import Sequence


def choose_checkpoint(scores: Sequence[float]) -> int:
    """(31): the index of the largest score, the first one in a tie; ``ValueError`` for none or NaN."""
    if len(scores) == 0 or any(score != score for score in scores):
        raise ValueError(f"scores: expected at least one number and no NaN, got {list(scores)}")
    return max(range(len(scores)), key=scores.__getitem__)
