"""Figure 5 and what it is set against: does a score foretell the reward after RL, or the gain, beyond what J_0 does?

All statistics are one number a ladder (B14). What is fitted is fitted on other ladders than the one it is judged on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from replicate.impact import evidence
from replicate.impact.choice import regret, regret_of_chance
from replicate.statistics.series import Series, pearson, spearman, zscore
from replicate.statistics.splines import Basis, partial_over_spline

if TYPE_CHECKING:
    import pandas as pd

CALIBRATED, SCALE_FREE = "J_0 + a + b score", "z(J_0) + z(score)"
"""The two forms of figure 5, left and right."""

NO_SCORE = "none"

SPLINE = "spline in J_0"
"""The baseline that may bend as it likes in J_0, and knows nothing else (B12)."""

CHANCE = "chance"

_OF_J0 = ("J_0", "J_0 (1 - J_0)", SPLINE)  # nothing is left of them once a spline in J_0 is taken out


def combined(frame: "pd.DataFrame", scores: Mapping[str, Series]) -> "pd.DataFrame":
    """Figure 5: both of its predictors of the post-RL reward, for each score and for none, a row per rung of each.

    ``post`` is the mean reward after RL. ``calibrated`` is J_0 + a + b score, with b >= 0 and both fitted to post - J_0
    on the other ladders; ``scale_free`` is z(J_0) + z(score) within each ladder. Without a score b and z(score) are 0.
    Columns: ``score, ladder, step, J0, value`` (that of the score), ``post, calibrated, scale_free``.
    """
    import pandas as pd

    base = frame[["ladder", "step", "J0"]].assign(post=frame["J0_held_out"] + frame["gain"])
    base["rise"] = base["post"] - base["J0"]
    parts = []
    for name, values in {NO_SCORE: np.zeros(len(frame)), **scores}.items():
        own = base.assign(score=name, value=np.asarray(values, dtype=float))
        own["calibrated"] = own["J0"] + evidence.left_out_prediction(own, "value", "rise")
        within = own.groupby("ladder", sort=False, observed=True)
        own["scale_free"] = within["J0"].transform(zscore) + within["value"].transform(zscore)
        parts.append(own.drop(columns="rise"))
    return pd.concat(parts, ignore_index=True)


def rises(table: "pd.DataFrame") -> "pd.DataFrame":
    """How much better the predictors of :func:`combined` follow the post-RL reward than their parts do, by ladder.

    A row per score, form and ladder: ``r``, the correlation over rungs; ``over_J0`` and ``over_score``, how far it is
    above that of J_0 alone and above that of the score alone (0 for one that is constant).
    """
    import pandas as pd

    rows = []
    for (name, ladder), own in table[table["score"] != NO_SCORE].groupby(["score", "ladder"], sort=False):
        present, alone = pearson(own["J0"], own["post"]), np.nan_to_num(pearson(own["value"], own["post"]))
        for form, column in ((CALIBRATED, "calibrated"), (SCALE_FREE, "scale_free")):
            r = pearson(own[column], own["post"])
            # With b = 0 the two correlations differ in round-off, and no ladder shall be counted as a rise for that.
            above = {"over_J0": round(r - present, 12), "over_score": r - alone}
            rows.append({"score": name, "form": form, "ladder": ladder, "r": r, **above})
    return pd.DataFrame(rows)


def errors(table: "pd.DataFrame") -> "pd.DataFrame":
    """The root mean square of post-RL reward less calibrated predictor of :func:`combined`, per score and ladder."""
    square = (table["post"] - table["calibrated"]) ** 2
    found = square.groupby([table["score"], table["ladder"]], sort=False).mean() ** 0.5
    return found.rename("rmse").reset_index()


def judge(
    frame: "pd.DataFrame",
    scores: "Mapping[str, Callable[[pd.DataFrame], pd.Series]]",
    target: str,
    *,
    spline: Basis,
    knots: int = 5,
) -> "pd.DataFrame":
    """What each score knows of ``frame[target]``: one row per score and ladder of a study frame.

    - ``spearman``: rank correlation over the ladder's rungs, 0 for a score that is the same on all of them;
    - ``partial``: that of what a natural spline in J_0 with ``knots`` knots leaves of both; NaN for functions of J_0;
    - ``r2``: how well a + b score, b >= 0, fitted to the other ladders predicts this one;
    - ``regret``: what (31) costs with this score, as a share of the best.

    Two rows a ladder more: :data:`SPLINE`, the ``target`` on the basis ``spline`` in J_0, fitted to the other ladders;
    and :data:`CHANCE`, which has a regret only.
    """
    import pandas as pd

    table = evidence.scored(frame, scores)
    columns = {name: table[name] for name in scores}
    columns[SPLINE] = evidence.left_out_prediction(table, "J0", target, basis=spline)
    fitted = table.assign(**{SPLINE: table["J0"]})
    skill = evidence.left_out_skill(fitted, list(columns), target, bases={SPLINE: spline})
    r2 = skill.set_index(["score", "ladder"])["r2"]
    rows = []
    for ladder, own in table.groupby("ladder", sort=False, observed=True):
        for name, column in columns.items():
            marks = _orders(column[own.index], own[target], own["J0"], knots)
            marks["partial"] = np.nan if name in _OF_J0 else marks["partial"]
            rows.append({"score": name, "ladder": ladder, "r2": r2[name, ladder], **marks})
        rows.append({"score": CHANCE, "ladder": ladder, "regret": regret_of_chance(own[target])})
    return pd.DataFrame(rows)


def _orders(x: "pd.Series", y: "pd.Series", J0: "pd.Series", knots: int) -> dict[str, float]:
    return {
        "spearman": float(np.nan_to_num(spearman(x, y))),
        "partial": partial_over_spline(x, y, J0, knots=knots),
        "regret": regret(x, y),
    }


def ahead(judged: "pd.DataFrame", column: str, ours: Sequence[str], rivals: Sequence[str]) -> "pd.DataFrame":
    """How far each of ``ours`` is ahead of each of ``rivals`` in a column of :func:`judge`, ladder by ladder.

    A row per pair: ``score, rival, mean, low, high, positive, n, sign_p``; a score is not set against itself.
    """
    import pandas as pd

    parts = []
    for rival in rivals:
        against = evidence.summary(judged[judged["score"].isin([*ours, rival])], column, against=rival)
        parts.append(against[against["score"] != rival].assign(rival=rival))
    table = pd.concat(parts, ignore_index=True)
    order = {name: i for i, name in enumerate(ours)}
    return table.sort_values("score", key=lambda names: names.map(order), kind="stable", ignore_index=True)
