r"""The law of impact: the gain of n RL updates from a score measured before the first of them, (29)-(30) with a form.

**First order.** The surrogate's update is normalised: gradients are clipped to a norm, and Adam divides each of their
elements by its running size. So a step has a length eta that the gradient does not set, and only its direction matters,

    theta' = theta + eta u,   u = ghat / |ghat|,   J' - J = eta <grad J, ghat> / |ghat| + O(eta^2),

with ghat the sampled gradient of the surrogate under the trainer's own advantages. Of several draws numerator and
denominator are averaged apart: eta E<grad J, ghat> / sqrt(E|ghat|^2).

**At the state.** theta acts through the state s that the head reads: grad J = (ds/dtheta)^T g and ghat =
(ds/dtheta)^T lambda^. If (ds/dtheta)(ds/dtheta)^T stretches the two costates alike, the first-order gain is

    c kappa / sqrt(E|lambda^|^2),   kappa = E<lambda^, g>,

the form ``normalised`` of :data:`~replicate.impact.scores.FORMS`; c = eta times the stretch. *That the stretch is the
same on every rung, and on every ladder, is an assumption.* Nothing above implies it, a state whose scale drifts along
pretraining breaks it, and it is tested by how well one c fits ladders that did not choose it.

**Saturation.** No reward exceeds 1. n updates in a line would add c n s, with s the score; the entries of
:data:`SATURATIONS` say how what is left slows them down. All have the slope c s at n = 0:

- ``linear``: dJ/dn = c s, not slowed down at all, hence not bounded either: what small budgets need, and no more;
- ``exponential``: dJ/dn proportional to 1 - J, the rewards that are still missing;
- ``logistic``: dJ/dn proportional to J (1 - J), a logit that is pushed at one speed, so that gains may speed up first.

**Adding up.** n steps of one direction go n lengths, n steps of independent directions sqrt(n). ``"..., n^b"``
(:data:`POWERS`) puts n^b in the place of n, b in [1/2, 1] being the one constant more. The slope at n = 0 is then no
longer c s (it is infinite): c s is the forecast of the first update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import optimize

from replicate.checks import one_of
from replicate.impact.scores import LAW, RIVALS
from replicate.statistics.series import spearman

if TYPE_CHECKING:
    import pandas as pd

Row = Float[np.ndarray, " rows"]
Unknowns = Float[np.ndarray, " unknowns"]
Values = Float[np.ndarray, "..."] | float
Saturation = Callable[[Values, Values, Values, float], Values]


def _linear(score: Values, J0: Values, n: Values, c: float) -> Values:
    return c * n * score + 0 * J0


def _exponential(score: Values, J0: Values, n: Values, c: float) -> Values:
    """(1 - J0)(1 - exp(-c n s / (1 - J0))); for s < 0 towards -J0 in the same way, since rewards end at 0, too.

    Without room the gain is 0, the limit.
    """
    push = c * n * score
    room = np.where(push >= 0, 1 - J0, J0)
    left = np.where(room > 0, room, 1.0)
    return np.where(room > 0, -np.sign(push) * left * np.expm1(-abs(push) / left), 0.0)


def _logistic(score: Values, J0: Values, n: Values, c: float) -> Values:
    """sigma(logit J0 + c n s / (J0 (1 - J0))) - J0, written without a logit and without an exponential that overflows.

    Limits: J0 -> 1 with s > 0 gives 0, J0 -> 0 with s < 0 gives 0. J0 -> 0 with s > 0 kept fixed gives 1, not 0: the
    logit's speed s/J0 grows without bound. A score that is first order in J0, as the law's is, does not do that.
    """
    push = c * n * score
    spread = J0 * (1 - J0)
    inside = spread > 0
    shift = abs(push) / np.where(inside, spread, 1.0)
    low = np.where(push >= 0, J0, 1 - J0)  # mirrored, so that one formula does for both directions
    gain = -spread * np.expm1(-shift) / np.where(inside, low + (1 - low) * np.exp(-shift), 1.0)
    return np.sign(push) * np.where(inside, gain, np.where(low == 0, 1.0, 0.0))


SATURATIONS: dict[str, Saturation] = {
    "linear": _linear,
    "exponential": _exponential,
    "logistic": _logistic,
}
"""How a gain saturates: ``(score, J0, n, c)`` to the gain after n updates, elementwise, broadcast."""

POWERS = {f"{name}, n^b": name for name in SATURATIONS}
"""The same with n^b in the place of n, b fitted."""

_B = (0.5, 1.0)  # independent steps, one direction


@dataclass(frozen=True)
class Law:
    """A fitted law: gain = form(score, J0, n^b, c); ``score`` is an entry of ``RIVALS`` or a column."""

    form: str
    c: float
    b: float = 1.0
    score: str = LAW


def long(frame: "pd.DataFrame", budgets: Sequence[int]) -> "pd.DataFrame":
    """One row per ladder, rung and budget ``n`` of a study frame, with the ``gain`` of that budget and all scores.

    Rows without a gain (RL failed there) are left out. ``ValueError`` for a budget that was not run.
    """
    import pandas as pd

    if missing := [n for n in budgets if f"gain_{n}" not in frame]:
        raise ValueError(f"budgets: expected budgets with a column gain_n, got {missing or 'none'}")
    kept = frame[[name for name in frame if not name.startswith(("gain", "post"))]]
    parts = [kept.assign(n=n, gain=frame[f"gain_{n}"]) for n in budgets]
    return pd.concat(parts, ignore_index=True).dropna(subset="gain", ignore_index=True)


def score_of(frame: "pd.DataFrame", score: str) -> Row:
    """The score by name, an entry of ``RIVALS`` or a column; ``ValueError`` for neither and for what is not finite."""
    if score not in RIVALS and score not in frame:
        raise ValueError(f"score: expected one of {tuple(RIVALS)} or a column, got {score!r}")
    values = (RIVALS[score](frame) if score in RIVALS else frame[score]).to_numpy(float)
    if not np.isfinite(values).all():
        raise ValueError(f"score: expected finite numbers, got some that are not in {score!r}")
    return values


def fit(frame: "pd.DataFrame", *, form: str, score: str = LAW) -> Law:
    """The law whose gains have the least squared error over the rows of :func:`long`, every ladder weighing the same.

    ``form`` is one of :data:`SATURATIONS`, or of :data:`POWERS` to fit b, too. c >= 0, so that a score that runs
    against the gain is fitted by no gain at all. Rungs and budgets of a ladder weigh the same within it. There is no
    intercept: a rung without a score has no gain. ``ValueError`` for no row, a score that is unknown or not finite,
    J0 outside [0, 1], a gain that is not finite.
    """
    one_of("form", form, (*SATURATIONS, *POWERS))
    x, J0, n = _inputs(frame, score)
    gain = frame["gain"].to_numpy(float)
    if not np.isfinite(gain).all():
        raise ValueError("gain: expected finite numbers, got some that are not")
    weight = 1 / np.sqrt(frame.groupby("ladder")["gain"].transform("size").to_numpy(float))
    curve = SATURATIONS[POWERS.get(form, form)]
    slope = _unit(weight * n * x, weight * gain)
    if slope == 0:
        return Law(form, 0.0, 1.0, score)

    def errors(at: Unknowns) -> Row:
        log_c, b = (*at, 1.0)[:2]
        return weight * (curve(x, J0, n**b, slope * np.exp(log_c)) - gain)

    best = _least(errors, _B if form in POWERS else None)
    if np.square(errors(best)).sum() >= np.square(weight * gain).sum():
        return Law(form, 0.0, 1.0, score)
    log_c, b = (*best.tolist(), 1.0)[:2]
    return Law(form, slope * float(np.exp(log_c)), b, score)


def _unit(x: Row, y: Row) -> float:
    """The size of the slope of y on x through 0: the unit in which c is looked for, so that the score has none."""
    size = np.square(x).sum()
    return float(abs(x @ y) / size) if size > 0 else 0.0


def _least(errors: Callable[[Unknowns], Row], powers: tuple[float, float] | None) -> Unknowns:
    """log c, and b if it has ends, of the least sum of squares: of the minima polished from several starts, the lowest.

    A start is the best of a grid over many decades of c, at one of a few b. A lone start can end where all rungs are
    saturated and the errors no longer feel c.
    """
    found = []
    for rest in [()] if powers is None else [(b,) for b in np.linspace(*powers, 3)]:
        grid = [np.array([log_c, *rest]) for log_c in np.linspace(-12.0, 12.0, 49)]
        start = min(grid, key=lambda at: np.square(errors(at)).sum())
        low, high = zip(*[(-20.0, 20.0), *([powers] if rest else [])], strict=True)
        polished = optimize.least_squares(
            errors, start, bounds=(low, high), method="dogbox", ftol=1e-14, xtol=1e-12, gtol=1e-14
        )
        found.append(polished)
    return min(found, key=lambda polished: polished.cost).x


def _inputs(frame: "pd.DataFrame", score: str) -> tuple[Row, Row, Row]:
    if len(frame) == 0:
        raise ValueError("frame: expected at least one row, got none")
    x, J0, n = score_of(frame, score), frame["J0"].to_numpy(float), frame["n"].to_numpy(float)
    if not ((J0 >= 0) & (J0 <= 1)).all():
        raise ValueError("J0: expected expected rewards in [0, 1], got something else (or NaN)")
    return x, J0, n


def predict(law: Law, frame: "pd.DataFrame") -> "pd.Series":
    """The gains that ``law`` forecasts on the rows of :func:`long`; no column of gains is read."""
    import pandas as pd

    x, J0, n = _inputs(frame, law.score)
    form = SATURATIONS[POWERS.get(law.form, law.form)]
    return pd.Series(form(x, J0, n**law.b, law.c), index=frame.index, name="predicted")


def left_out(frame: "pd.DataFrame", form: str, score: str = LAW) -> "pd.Series":
    """Forecasts of every ladder's gains by the law fitted to the other ladders; ``ValueError`` for a lone ladder."""
    import pandas as pd

    ladders = frame["ladder"].unique()
    if len(ladders) < 2:
        raise ValueError(f"frame: expected at least 2 ladders, got {len(ladders)}")
    parts = []
    for name in ladders:
        own = frame["ladder"] == name
        parts.append(predict(fit(frame[~own], form=form, score=score), frame[own]))
    return pd.concat(parts).reindex(frame.index)


def skill(
    forecast: "Law | pd.Series | np.ndarray", frame: "pd.DataFrame", *, mean: bool = False
) -> "pd.DataFrame":
    """How good a forecast of ``frame.gain`` is, a row per ladder and budget n; with ``mean``, per ladder, of the means
    over the budgets in the frame.

    ``r2`` is 1 - squared errors / squares about the ladder's own mean, so that 0 is what somebody reaches who knows
    that mean (NaN if all gains are alike); ``spearman`` over rungs; ``bias`` the mean of forecast minus gain; ``rmse``,
    in units of the reward; ``rungs`` their number.
    """
    import pandas as pd

    predicted = predict(forecast, frame) if isinstance(forecast, Law) else np.asarray(forecast, dtype=float)
    if len(predicted) != len(frame):
        raise ValueError(f"forecast: expected one number for each of {len(frame)} rows, got {len(predicted)}")
    table = frame[["ladder", "step", "n", "gain"]].assign(predicted=predicted)
    if mean:
        table = table.groupby(["ladder", "step"], sort=False)[["gain", "predicted"]].mean().reset_index()
    by = ["ladder"] if mean else ["ladder", "n"]
    rows = [
        dict(zip(by, key, strict=True)) | _errors(rows.gain.to_numpy(float), rows.predicted.to_numpy(float))
        for key, rows in table.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows)


def _errors(gain: Row, predicted: Row) -> Mapping[str, float]:
    error, spread = predicted - gain, np.square(gain - gain.mean()).sum()
    return {
        "r2": float(1 - np.square(error).sum() / spread) if spread > 0 else float("nan"),
        "spearman": spearman(predicted, gain),
        "bias": float(error.mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "rungs": len(gain),
    }
