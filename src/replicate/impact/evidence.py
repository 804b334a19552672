"""How well predictors foretell the gain, judged on ladders: one number a ladder, never one a rung.

A predictor is a column of a study frame. It is fitted on other ladders than the one on which it is judged.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from replicate.impact import decisions
from replicate.impact.law import SATURATIONS
from replicate.statistics.over_ladders import left_out_ladder, over_ladders, paired, predict_ladders
from replicate.statistics.series import spearman

if TYPE_CHECKING:
    import pandas as pd

    from replicate.impact.law import Law
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


def left_out_prediction(
    frame: "pd.DataFrame", score: str, target: str = "gain", *, basis: "Basis | None" = None
) -> "pd.Series":
    """a + b ``score`` for each row, b >= 0, fitted to ``target`` on the other ladders; with ``basis`` freely, on its
    columns."""
    import pandas as pd

    parts = []
    for name, rows in frame.groupby("ladder", sort=False, observed=True):
        _, line = predict_ladders(frame[frame["ladder"] != name], rows, score, target, basis=basis)
        design = rows[[score]].to_numpy(float) if basis is None else basis(rows[score])
        parts.append(pd.Series(line.predict(design), index=rows.index))
    return pd.concat(parts).reindex(frame.index)


def residuals(frame: "pd.DataFrame", score: str, target: str = "gain") -> "pd.Series":
    """``target`` less its :func:`left_out_prediction` by a rising line, rung by rung."""
    return frame[target] - left_out_prediction(frame, score, target)


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


def by_band(
    long: "pd.DataFrame", predicted: "Mapping[str, pd.Series]", *, edges: Sequence[float]
) -> "pd.DataFrame":
    """Measured and predicted gain by budget in bands of J_0: means over ladders of each ladder's mean over its rungs.

    ``long`` is the table of :func:`replicate.impact.law.long`. Columns ``band, n, gain, low, high`` (the interval over
    ladders) and one of every prediction. A ladder without a rung in a band is left out there.
    """
    import pandas as pd

    labels = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    table = long[["ladder", "n", "gain"]].assign(**predicted)
    table["band"] = pd.cut(long.J0, list(edges), labels=labels, include_lowest=True)
    means = table.groupby(["band", "n", "ladder"], observed=True).mean().reset_index()
    rows = []
    for (band, n), own in means.groupby(["band", "n"], observed=True):
        found = over_ladders(own.gain)
        ends = {"gain": found.mean, "low": found.low, "high": found.high}
        rows.append({"band": band, "n": n, **ends, **{name: own[name].mean() for name in predicted}})
    return pd.DataFrame(rows)


SATURATED, FROZEN = "first order, saturated", "frozen gradients"


def forecasts(forecast: "pd.DataFrame", frame: "pd.DataFrame", gains: "pd.DataFrame") -> "pd.DataFrame":
    """Forecasts without a fitted number beside the measured gain, a row per ladder, rung and budget.

    :data:`SATURATED` lets the first-order gain saturate, (1 - J_0)(1 - exp(-x/(1 - J_0))); :data:`FROZEN` is the gain
    that is found where the frozen gradients lead.
    """
    rung = ["ladder", "step"]
    measured = gains.groupby([*rung, "budget"]).gain.mean().reset_index()
    table = forecast.merge(measured, on=[*rung, "budget"]).merge(frame[[*rung, "J0"]], on=rung)
    saturated = SATURATIONS["exponential"](table.linear.to_numpy(), table.J0.to_numpy(), 1.0, 1.0)
    table = table.assign(**{SATURATED: saturated, FROZEN: table.frozen})
    return table[[*rung, "budget", "J0", "gain", SATURATED, FROZEN]]


def forecast_skill(table: "pd.DataFrame", names: Sequence[str]) -> "pd.DataFrame":
    """Per forecast, ladder and budget: R^2 about the ladder's own mean, rank correlation, bias (forecast less gain)."""
    import pandas as pd

    rows = []
    for (ladder, budget), own in table.groupby(["ladder", "budget"], sort=False):
        spread = np.square(own.gain - own.gain.mean()).sum()
        for name in names:
            error = own[name] - own.gain
            marks = {"r2": 1 - np.square(error).sum() / spread, "bias": error.mean()}
            marks["spearman"] = spearman(own[name], own.gain)
            rows.append({"forecast": name, "ladder": ladder, "budget": budget, **marks})
    return pd.DataFrame(rows)


def costs_of(parameters: Mapping[str, Any]) -> decisions.Costs:
    """The prices of a ladder's run, from its flat parameters: an update's 128 sequences in full, and for measuring a
    rung its prompts once in full."""
    length = parameters["FILLER"] + 6  # "label is y ;", the filler, "answer :"
    update = decisions.update_tokens(
        prompts=parameters["PROMPTS"], group_size=parameters["GROUP_SIZE"], length=length
    )
    return decisions.Costs(update=update, measure=parameters["MEASURE_PROMPTS"] * length)


FORECAST = "forecast by the law"


def regrets(
    frame: "pd.DataFrame",
    costs: Mapping[str, decisions.Costs],
    fitted: "Law",
    totals: Sequence[int],
    scores: "Mapping[str, Callable[[pd.DataFrame], pd.Series]]",
) -> "pd.DataFrame":
    """Every policy on every ladder at every total: :func:`replicate.impact.decisions.policies` with ``total`` counted
    in rungs (the tokens at which the ladder has that many) and the law's forecast among the policies."""
    import pandas as pd

    parts = []
    for name, own in frame.groupby("ladder", sort=False):
        tokens = own.tokens.sort_values().to_numpy()
        forecast = {FORECAST: decisions.forecast_by(fitted)}
        for total in totals:
            found = decisions.policies(own, int(tokens[total - 1]), costs[name], scores, forecast)
            parts.append(found.assign(ladder=name, total=total))
    return pd.concat(parts, ignore_index=True)


def regret_summary(table: "pd.DataFrame") -> "pd.DataFrame":
    """Mean regret over ladders with its interval, a row per total and policy; policies that a ladder cannot afford at a
    total are left out of it."""
    import pandas as pd

    rows = []
    for (total, policy), own in table.groupby(["total", "policy"], sort=False):
        if policy != decisions.ORACLE and own.regret.notna().all():
            rows.append({"total": total, "policy": policy, **vars(over_ladders(own.regret))})
    return pd.DataFrame(rows)


def tokens_to(
    frame: "pd.DataFrame",
    costs: Mapping[str, decisions.Costs],
    scores: "Mapping[str, Callable[[pd.DataFrame], pd.Series]]",
    *,
    target: float,
) -> "pd.DataFrame":
    """By policy: on how many ladders it reaches ``target`` within the budgets run, the median of its updates and of its
    excess of tokens over the best rung, both over all ladders (infinite where the median ladder does not get there)."""
    import pandas as pd

    parts = [decisions.policies_to(own, costs[name], scores, target) for name, own in frame.groupby("ladder")]
    table = pd.concat(parts)
    by = table.groupby("policy", sort=False)
    reached = by.total.apply(lambda total: int(np.isfinite(total).sum()))
    return pd.DataFrame({"reached": reached, "updates": by.updates.median(), "excess": by.excess.median()})
