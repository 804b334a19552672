r"""The law: readings of the usable signal (27), which times the headroom is the score of a checkpoint, and its rivals.

A reading of the signal is an entry of :data:`SIGNALS` or :data:`FORMS`, a predictor of the response an entry of
:data:`PREDICTORS` or :data:`RIVALS`.

What a score may depend on. Let the pathwise costate be multiplied by r (the reward's unit), the empirical one by a (the
reward's unit, or the scale of the advantages, which GRPO's division by the std sets free of the reward), and both by c
(state / c, which the next layer undoes: no output changes). Then the forms are multiplied by

====================  ======================  =====================  ==========  ==============================
form                  of V, Delta, kappa, E   advantages' scale a    state c     reward r = a, raw advantages
====================  ======================  =====================  ==========  ==============================
``difference``        V - Delta               no power: order moves  c^2         r^2
``scale-fitted``      [kappa]_+^2 / E         1                      c^2         r^2
``normalised``        kappa / sqrt(E)         1                      c           r
``relative``          1 - Delta / V           no power: order moves  1           1
``cosine``            kappa / sqrt(V E)       1                      1           1
``V``                 V                       1                      c^2         r^2
``kappa``             kappa                   a                      c^2         r^2
====================  ======================  =====================  ==========  ==============================

with E = E|lambda^|^2. A factor common to all rungs leaves their order alone, one that differs from rung to rung does
not: ``relative`` and ``cosine`` alone are safe from a state whose scale drifts along pretraining; ``difference`` and
``relative`` change the order of the rungs when advantages are doubled on all of them.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from replicate.checks import one_of
from replicate.statistics.series import Series

if TYPE_CHECKING:
    import pandas as pd

SIGNALS: dict[str, Callable[[float, float, float], float]] = {
    "V - Delta": lambda V, delta, kappa: V - delta,
    "V": lambda V, delta, kappa: V,
    "[V - Delta]+": lambda V, delta, kappa: max(V - delta, 0.0),
    "kappa": lambda V, delta, kappa: kappa,
    # A conditional Delta is estimated without bias, so it can come out slightly below zero.
    "V - sqrt(V Delta)": lambda V, delta, kappa: V - (max(V, 0.0) * max(delta, 0.0)) ** 0.5,
}
PRIMARY_SIGNAL = "V - Delta"


def signal(V: float, delta: float, kappa: float, *, kind: str = PRIMARY_SIGNAL) -> float:
    """One reading of the usable signal (27) from V, Delta and kappa; ``ValueError`` for an unknown one."""
    one_of("kind", kind, SIGNALS)
    return SIGNALS[kind](V, delta, kappa)


def averaged(parts: "pd.DataFrame", n: Real) -> "pd.DataFrame":
    """V, delta, kappa and empirical of the mean of ``n`` costates (pathwise and empirical alike), one row per row.

    ``parts`` has the four columns for one sampled costate, and ``V_mean, delta_mean, kappa_mean`` for the conditional
    mean. A second moment of a mean of n independent draws is X_n = X_mean + (X - X_mean)/n, so the draws are one from
    each of n groups: a group's own baseline ties its samples together. E|E lambda^|^2 comes from the other three by
    polarisation. V does not move where the pathwise costate is the value gradient itself, as in the categorical model.
    ``n`` is a number from 1 to ``math.inf`` (no sampling at all); ``ValueError`` for another.
    """
    import pandas as pd

    if not n >= 1:
        raise ValueError(f"n: expected a number of costates from 1 to infinity, got {n}")
    means = {name: parts[f"{name}_mean"] for name in ("V", "delta", "kappa")}
    means["empirical"] = means["delta"] - means["V"] + 2 * means["kappa"]
    share = 0.0 if n == math.inf else 1 / n
    return pd.DataFrame({name: mean + share * (parts[name] - mean) for name, mean in means.items()})


def _over(numerator: Series, denominator: Series) -> Series:
    """The ratio where the denominator is positive, else 0.

    Denominators are second moments. One that is zero says that there is no signal at all: J_0 is 0 or 1 to the last
    digit, every advantage is zero, RL does not move, and 0 is the score that says so. One below zero is an unbiased
    estimate that came out on the wrong side of zero, and says the same.
    """
    found = denominator > 0
    return (numerator / denominator.where(found, 1.0)).where(found, 0.0)


def _root(moment: "pd.Series") -> "pd.Series":
    return moment.clip(lower=0.0) ** 0.5


def _relative(frame: "pd.DataFrame") -> "pd.Series":
    """1 - Delta/V; minus infinity, its limit, where there is an error and no signal."""
    found = frame.V > 0
    return ((frame.V - frame.delta) / frame.V.where(found, 1.0)).where(
        found, np.where(frame.delta > 0, -np.inf, 0.0)
    )


FORMS: dict[str, "Callable[[pd.DataFrame], pd.Series]"] = {
    "difference": lambda frame: frame.V - frame.delta,
    # V - min over c >= 0 of E|c lambda^ - g|^2: what is left of the error once the step's length is chosen well.
    "scale-fitted": lambda frame: _over(frame.kappa.clip(lower=0.0) ** 2, frame.empirical),
    # The law: see replicate.impact.law.
    "normalised": lambda frame: _over(frame.kappa, _root(frame.empirical)),
    "relative": _relative,
    "cosine": lambda frame: _over(frame.kappa, _root(frame.V) * _root(frame.empirical)),
    "V": lambda frame: frame.V,
    "kappa": lambda frame: frame.kappa,
}
"""Readings of the usable signal from the columns of :func:`averaged`; scalings in the module's docstring."""


def duplicates(columns: Mapping[str, Series]) -> dict[str, str]:
    """The columns that order the rungs as an earlier one does, each mapped to the first that does.

    Two columns order the rungs alike if no pair of rungs that one of them tells apart (by more than 1e-9 of the larger
    value) is tied or reversed in the other: what differs in round-off alone is one reading, a clipped column is
    another than the column itself. ``ValueError`` for lengths that differ and for NaN.
    """
    first: dict[str, np.ndarray] = {}
    found: dict[str, str] = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)
        if np.isnan(values).any() or any(len(values) != len(other) for other in first.values()):
            raise ValueError(f"columns: expected columns of one length without NaN, got {name!r} that is not")
        values = np.clip(values, -1e300, 1e300)  # infinities are ordered, too, and have a difference
        twin = next((earlier for earlier, other in first.items() if _ordered_alike(values, other)), None)
        if twin is None:
            first[name] = values
        else:
            found[name] = twin
    return found


def _ordered_alike(x: np.ndarray, y: np.ndarray, tolerance: float = 1e-9) -> bool:
    order = np.argsort(x, kind="stable")
    sorted_y = y[order]
    # Most pairs of columns part here, at neighbours, without looking at every pair of rungs.
    falls = sorted_y[:-1] - sorted_y[1:]
    if (falls > tolerance * np.maximum(abs(sorted_y[:-1]), abs(sorted_y[1:]))).any():
        return False
    signs, told_apart = zip(*(_pairs(values, tolerance) for values in (x, y)), strict=True)
    return not ((told_apart[0] | told_apart[1]) & (signs[0] != signs[1])).any()


def _pairs(values: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    gap = values[:, None] - values
    return np.sign(gap), abs(gap) > tolerance * np.maximum(abs(values)[:, None], abs(values))


PREDICTORS: dict[str, "Callable[[pd.DataFrame], pd.Series]"] = {
    "S = (V - Delta) H, one costate": lambda frame: frame.S,
    "V": lambda frame: frame.V,
    "V H": lambda frame: frame.V * frame.H,
    "J_0": lambda frame: frame.J0,
    "J_0 (1 - J_0)": lambda frame: frame.J0 * (1 - frame.J0),
    "headroom H": lambda frame: frame.H,
    "entropy": lambda frame: frame.entropy,
    "|grad_theta J|^2": lambda frame: frame.gradient_norm_squared,
}
"""What may say where RL helps, from the columns of :func:`replicate.runs.tables.per_checkpoint`."""

LAW = "law"
PILOT = "pilot of 5 updates"
RIVALS: dict[str, "Callable[[pd.DataFrame], pd.Series]"] = {
    LAW: lambda frame: frame.law,
    **PREDICTORS,
    "greedy minus sampled accuracy": lambda frame: frame.top - frame.J0,
    PILOT: lambda frame: frame.pilot,
}
"""The law and what it has to beat, from the columns of a study frame: those of :data:`PREDICTORS`, and ``law`` (the
form ``normalised`` of one costate under the trainer's advantages), ``top`` (greedy accuracy), ``pilot``."""
