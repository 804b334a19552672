"""How well predictors foretell the gain, judged on ladders: one number a ladder, never one a rung.

A predictor is a column of a study frame. It is fitted on other ladders than the one on which it is judged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from replicate.statistics.over_ladders import left_out_ladder, over_ladders, paired, predict_ladders

if TYPE_CHECKING:
    import pandas as pd

    from replicate.statistics.splines import Basis


def scored(
    frame: "pd.DataFrame", scores: "Mapping[str, Callable[[pd.DataFrame], pd.Series]]"
) -> "pd.DataFrame":
    """The frame with a column for each of ``scores``, under its name."""
    return frame.assign(**{name: of(frame) for name, of in scores.items()})


def left_out_skill(
    frame: "pd.DataFrame",
    scores: Sequence[str],
    target: str = "gain",
    *,
    bases: "Mapping[str, Basis] | None" = None,
) -> "pd.DataFrame":
    """Each ladder's ``target`` from a fit to the others: a row per score and ladder, with R^2 about the ladder's
    own mean, rank correlation, bias and rmse.

    A score is fitted by a rising line, or freely on the basis that ``bases`` has for it.
    """
    return _stacked(
        scores,
        bases,
        lambda name, how: left_out_ladder(frame, name, target, **how),
        columns=("score", "ladder"),
    )


def locked_skill(
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    scores: Sequence[str],
    target: str = "gain",
    *,
    bases: "Mapping[str, Basis] | None" = None,
) -> "pd.DataFrame":
    """The same for ladders ``test`` that the one fit, on ``train``, has not seen."""
    return _stacked(
        scores,
        bases,
        lambda name, how: predict_ladders(train, test, name, target, **how)[0],
        ("score", "ladder"),
    )


def _stacked(scores, bases, skill, columns) -> "pd.DataFrame":
    import pandas as pd

    parts = {}
    for name in scores:
        basis = (bases or {}).get(name)
        parts[name] = skill(name, {} if basis is None else {"basis": basis})
    return pd.concat(parts, names=columns).reset_index()


def summary(skill: "pd.DataFrame", column: str, *, against: str | None = None) -> "pd.DataFrame":
    """``column`` of a skill table over ladders: a row per score with ``mean, low, high`` (95 %), ``positive``, ``n``,
    ``sign_p``; with ``against`` of the differences to that score, ladder by ladder. Best first.

    A rank correlation that is NaN, because the fitted line is flat, counts as 0: it orders nothing.
    """
    import pandas as pd

    wide = skill.pivot(index="ladder", columns="score", values=column).fillna(0.0)
    rows = []
    for name in [score for score in wide if score != against]:
        found = over_ladders(wide[name]) if against is None else paired(wide[name], wide[against])
        rows.append({"score": name, **vars(found)})
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True)


def residuals(frame: "pd.DataFrame", score: str, target: str = "gain") -> "pd.Series":
    """``target`` less its prediction by a rising line in ``score``, fitted on the other ladders, rung by rung."""
    import pandas as pd

    parts = []
    for name in frame.ladder.unique():
        own = frame[frame.ladder == name]
        line = predict_ladders(frame[frame.ladder != name], own, score, target)[1]
        parts.append(own[target] - (line.intercept + line.slope * own[score]))
    return pd.concat(parts).reindex(frame.index)


def unseen(frame: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The development ladders and the locked ones; ``ValueError`` if there is none of a kind."""
    parts = [frame[frame.role == role] for role in ("development", "locked")]
    if any(len(part) == 0 for part in parts):
        raise ValueError(f"frame: expected development and locked ladders, got {sorted(frame.role.unique())}")
    return parts[0], parts[1]


def extremes(frame: "pd.DataFrame", errors: "pd.Series", count: int) -> "pd.DataFrame":
    """The rungs with the largest errors, signs kept, largest first: where a prediction fails."""
    order = np.argsort(-errors.abs().to_numpy())[:count]
    columns = ["ladder", "step", "labels", "filler", "cooled", "J0", "gain"]
    return frame.iloc[order][columns].assign(error=errors.iloc[order])
