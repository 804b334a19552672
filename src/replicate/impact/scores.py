"""The law: readings of the usable signal (27), which times the headroom is the score of a checkpoint, and its rivals.

A reading of the signal is an entry of :data:`SIGNALS`, a predictor of the response an entry of :data:`PREDICTORS`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from replicate.checks import one_of

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
