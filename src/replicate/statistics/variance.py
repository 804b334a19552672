"""Where the variance of a number lies: between ladders, between the rungs of a ladder, between seeds (B14)."""

import numpy as np
import pandas as pd

from replicate.statistics.over_ladders import require_rows


def variance_shares(
    frame: pd.DataFrame,
    value: str,
    *,
    ladder: str = "ladder",
    rung: str = "step",
    seed: str = "seed",
    fixed_rungs: bool = False,
) -> dict[str, float]:
    """Shares of the variance of ``value`` between ``ladder``s, between ``rung``s of a ladder, between ``seed``s.

    Components of the nested analysis of variance from its expected mean squares (rungs and seeds may differ in
    number), negative ones set to 0, then divided by their sum; NaN if nothing varies. By default a ladder's rungs are
    draws, and what their scatter does to the ladder's mean is taken off the first component. Where all ladders are
    measured at the same steps, a course they have in common scatters no mean, and that takes off too much:
    ``fixed_rungs`` takes off the seeds' noise alone. Raises ``ValueError`` for fewer than two ladders, no ladder with
    two rungs, no rung with two seeds, or a seed that occurs twice at a rung.
    """
    require_rows(frame, ladder, value, finite=(value,))
    if frame.duplicated([ladder, rung, seed]).any():
        raise ValueError(f"frame: expected one row for each {ladder}, {rung} and {seed}, got some twice")
    cells = frame.groupby([ladder, rung], observed=True)[value].agg(["size", "mean"])
    totals = frame.groupby(ladder, observed=True)[value].agg(["size", "mean"])
    n, rungs, ladders = len(frame), len(cells), len(totals)
    if not n > rungs > ladders > 1:
        raise ValueError(
            f"frame: expected more rows than rungs than ladders than 1, got {n}, {rungs}, {ladders}"
        )
    squares = (frame[value] - frame[value].mean()).pow(2).sum()
    between = (totals["size"] * (totals["mean"] - frame[value].mean()) ** 2).sum()
    own = totals.loc[cells.index.get_level_values(0)]
    within = (cells["size"].to_numpy() * (cells["mean"].to_numpy() - own["mean"].to_numpy()) ** 2).sum()
    per_rung = (
        cells["size"].to_numpy() ** 2 / own["size"].to_numpy()
    ).sum()  # rows at the rung of a typical row
    noise = (squares - between - within) / (n - rungs)
    of_rungs = (within / (rungs - ladders) - noise) / ((n - per_rung) / (rungs - ladders))
    scatter = 0.0 if fixed_rungs else (per_rung - (cells["size"] ** 2).sum() / n) / (ladders - 1) * of_rungs
    of_ladders = (
        (between / (ladders - 1) - noise - scatter) * (ladders - 1) / (n - (totals["size"] ** 2).sum() / n)
    )
    parts = np.maximum([of_ladders, of_rungs, noise], 0.0)
    shares = parts / parts.sum() if parts.sum() > 0 else np.full(3, np.nan)
    return dict(zip(("ladder", "rung", "seed"), shares.tolist(), strict=True))
