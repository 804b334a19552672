"""Noise laws written out by hand: density, its derivative, its jumps, its characteristic function.

``torch.distributions`` draws samples of most of these laws and autograd differentiates their log densities. Nothing of
that is used here: what is computed from this module is a second route to every number that the samples give.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import integrate, special

Numbers = np.ndarray | np.number | float | int
Curve = Callable[[Numbers], Numbers]

# The bulk of a law of unit spread lies between these; a kink or a jump that falls on a cut costs nothing.
_CUTS = (-100.0, -30.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 30.0, 100.0)


class Law(NamedTuple):
    """A scalar law with a density p that is absolutely continuous between finitely many jumps.

    ``slope`` is p' where it exists; ``characteristic`` is psi(t) = E exp(i t xi), complex; ``jumps`` holds pairs of a
    place c and p(c+) - p(c-), ends of the support included; outside ``low`` to ``high`` p is zero.
    """

    density: Curve
    slope: Curve
    characteristic: Curve
    low: float = -math.inf
    high: float = math.inf
    jumps: tuple[tuple[float, float], ...] = ()

    def integral(self, f: Curve, *, low: float = -math.inf, high: float = math.inf) -> float:
        """Integral of f over the support, or its part between ``low`` and ``high``: tanh-sinh, about 1e-11 of error.

        The axis is cut at 0, so that a kink or a jump there falls on an end, where the rule allows it.
        """
        low, high = max(low, self.low), min(high, self.high)
        ends = [low, *(cut for cut in _CUTS if low < cut < high), high]
        rule = {"atol": 1e-15, "rtol": 1e-13, "minlevel": 5}
        return math.fsum(integrate.tanhsinh(f, a, b, **rule).integral for a, b in itertools.pairwise(ends))


def smooth(scale: float | int) -> dict[str, Law]:
    """Laws with a density that is differentiable everywhere, of standard deviation ``scale`` each.

    The keys are those of ``estimators.shift_families``, which knows the same laws by another route.
    """
    return {
        "Gaussian": gaussian(scale),
        "logistic": logistic(scale),
        "Student-t": student_t5(scale),
        "Gumbel": gumbel(scale),
    }


def kinked(scale: float | int) -> dict[str, Law]:
    """Laws with a continuous density that has a kink, or a bounded support; of standard deviation ``scale`` each."""
    return {"Laplace": laplace(scale), "Beta(2, 2)": bump(1, scale), "Beta(3, 3)": bump(2, scale)}


def jumping(scale: float | int) -> dict[str, Law]:
    """Laws with a density that jumps: at both ends, at one, and inside; of standard deviation ``scale`` each."""
    return {"uniform": bump(0, scale), "exponential": exponential(scale), "two halves": halves(0.8, scale)}


def gaussian(scale: float | int) -> Law:
    """exp(-x^2 / 2 s^2) / (s sqrt(2 pi))."""

    def density(x: Numbers) -> Numbers:
        return np.exp(-((x / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))

    return Law(density, lambda x: -x / scale**2 * density(x), lambda t: np.exp(-((scale * t) ** 2) / 2) + 0j)


def logistic(scale: float | int) -> Law:
    """sech(x / 2b)^2 / 4b with b = s sqrt(3) / pi."""
    b = scale * math.sqrt(3) / math.pi

    def density(x: Numbers) -> Numbers:
        decay = np.exp(-np.abs(x) / b)
        return decay / (b * (1 + decay) ** 2)

    # pi b t / sinh(pi b t), with its limit 1 at t = 0
    return Law(
        density,
        lambda x: -np.tanh(x / (2 * b)) / b * density(x),
        lambda t: np.divide(1, np.sinc(1j * b * np.asarray(t))),
    )


def student_t5(scale: float | int) -> Law:
    """Student's t with 5 degrees of freedom: 8 / (3 pi sqrt(5) c) (1 + x^2 / 5c^2)^-3 with c = s sqrt(3/5)."""
    c = scale * math.sqrt(3 / 5)

    def density(x: Numbers) -> Numbers:
        return 8 / (3 * math.pi * math.sqrt(5) * c) * (1 + x**2 / (5 * c**2)) ** -3

    def characteristic(t: Numbers) -> Numbers:
        k = math.sqrt(5) * c * np.abs(t)
        return np.exp(-k) * (1 + k + k**2 / 3) + 0j

    return Law(density, lambda x: -6 * x / (5 * c**2 + x**2) * density(x), characteristic)


def gumbel(scale: float | int) -> Law:
    """exp(-z - e^-z) / b with z = x / b and b = s sqrt(6) / pi; its mean is 0.577 b."""
    b = scale * math.sqrt(6) / math.pi

    def density(x: Numbers) -> Numbers:
        z = np.maximum(x / b, -300)  # e^300 squared is still a number; the density there is 0
        return np.exp(-z - np.exp(-z)) / b

    def slope(x: Numbers) -> Numbers:
        return np.expm1(-np.maximum(x / b, -300)) / b * density(x)

    return Law(density, slope, lambda t: special.gamma(1 - 1j * b * np.asarray(t)))


def laplace(scale: float | int) -> Law:
    """exp(-|x| / b) / 2b with b = s / sqrt(2): a kink at 0."""
    b = scale / math.sqrt(2)

    def density(x: Numbers) -> Numbers:
        return np.exp(-np.abs(x) / b) / (2 * b)

    return Law(density, lambda x: -np.sign(x) / b * density(x), lambda t: 1 / (1 + (b * t) ** 2) + 0j)


def bump(k: int, scale: float | int) -> Law:
    """C (1 - (x/l)^2)^k on (-l, l), l = s sqrt(2k + 3): Beta(k+1, k+1), centred.

    For k = 0 (uniform) the density jumps at its ends, for k = 1 it has kinks there, from k = 2 on it is smooth.
    """
    end = scale * math.sqrt(2 * k + 3)
    C = math.gamma(k + 1.5) / (math.sqrt(math.pi) * math.gamma(k + 1) * end)

    def density(x: Numbers) -> Numbers:
        return C * (1 - (x / end) ** 2) ** k

    def slope(x: Numbers) -> Numbers:
        return -2 * k * C * x / end**2 * (1 - (x / end) ** 2) ** max(k - 1, 0)

    def characteristic(t: Numbers) -> Numbers:
        # (2k+1)!! j_k(lt) / (lt)^k as a hypergeometric series, which has no 0/0 at t = 0
        return special.hyp0f1(k + 1.5, -((end * np.asarray(t)) ** 2) / 4) + 0j

    return Law(density, slope, characteristic, -end, end, ((-end, C), (end, -C)) if k == 0 else ())


def exponential(scale: float | int) -> Law:
    """exp(-x / s) / s for x > 0: a jump at 0."""

    def density(x: Numbers) -> Numbers:
        return np.exp(-x / scale) / scale

    return Law(
        density,
        lambda x: -density(x) / scale,
        lambda t: 1 / (1 - 1j * scale * np.asarray(t)),
        0.0,
        math.inf,
        ((0.0, 1 / scale),),
    )


def halves(right: float, scale: float | int) -> Law:
    """Two halves of one Gaussian, of weights 1 - ``right`` and ``right``: a jump at 0, inside the support."""
    lean = 2 * right - 1
    width = scale / math.sqrt(1 - 2 * lean**2 / math.pi)
    normal = gaussian(width)

    def weight(x: Numbers) -> Numbers:
        return np.where(x > 0, 1 + lean, 1 - lean)

    def characteristic(t: Numbers) -> Numbers:
        odd = 2 / math.sqrt(math.pi) * special.dawsn(width * np.asarray(t) / math.sqrt(2))
        return normal.characteristic(t) + 1j * lean * odd

    return Law(
        lambda x: weight(x) * normal.density(x),
        lambda x: weight(x) * normal.slope(x),
        characteristic,
        jumps=((0.0, 2 * lean / (width * math.sqrt(2 * math.pi))),),
    )
