"""The law: readings of the usable signal (27), which times the headroom is the score of a checkpoint."""

from typing import Literal, get_args

from replicate.checks import one_of

Signal = Literal["V - Delta", "V", "[V - Delta]+", "kappa", "V - sqrt(V Delta)"]


PRIMARY_SIGNAL: Signal = "V - Delta"


def signal(V: float, delta: float, kappa: float, *, kind: str = PRIMARY_SIGNAL) -> float:
    """One reading of the usable signal (27) from V, Delta and kappa."""
    one_of("kind", kind, get_args(Signal))
    if kind == "V":
        return V
    if kind == "kappa":
        return kappa
    if kind == "V - sqrt(V Delta)":
        # A conditional Delta is estimated without bias, so it can come out slightly below zero.
        return V - (max(V, 0.0) * max(delta, 0.0)) ** 0.5
    difference = V - delta
    return max(difference, 0.0) if kind == "[V - Delta]+" else difference
