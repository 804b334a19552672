"""Lemma 1, (10), by integrals and closed forms: its two sides, what a jump leaves, the variances on waves.

The signals are waves, phi(a) = sin(omega a). Both sides of (10) are linear in phi and a signal is a superposition of
waves, so what holds for all of these holds for the rest; and E sin(omega (mu + xi)) is the imaginary part of
exp(i omega mu) psi(omega), psi the noise's characteristic function: the true gradient takes no integral and no
derivative of the density.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor

from replicate.theory import estimators
from replicate.theory.noise_laws import Law, Numbers

Place = np.number | float | int | Float[np.ndarray, " d_a"]


class Wave(NamedTuple):
    """phi(a) = sin(omega a), a scalar."""

    omega: float

    def __call__(self, a: Numbers) -> Numbers:
        """The signal itself."""
        return np.sin(self.omega * a)

    def slope(self, a: Numbers) -> Numbers:
        """dphi/da."""
        return self.omega * np.cos(self.omega * a)


def lemma_sides(phi: Wave, mu: float, law: Law) -> tuple[float, float]:
    """(SF, PD) of (10) for one action with dmu/dtheta = 1, each its own integral.

    SF is -int phi(mu + x) p'(x) dx, the derivative on the density; PD is int phi'(mu + x) p(x) dx, the derivative on
    the signal. The two share the rule of integration and the density's normalisation, nothing else.
    """
    sf = law.integral(lambda x: -phi(mu + x) * law.slope(x))
    pd = law.integral(lambda x: phi.slope(mu + x) * law.density(x))
    return sf, pd


def jump_term(phi: Wave, mu: float, law: Law) -> float:
    """PD - SF: minus the sum over the density's jumps of phi(mu + c) [p(c+) - p(c-)], ends of the support included."""
    return -math.fsum(float(phi(mu + place)) * height for place, height in law.jumps)


def true_gradient(omega: Place, mu: Place, law: Law) -> Place:
    """d/dmu E sin(omega . (mu + xi)) = omega Re[exp(i omega . mu) prod_j psi(omega_j)], in closed form.

    ``omega`` and ``mu`` are two numbers, or the wave vector and the location, [d_a] each, with independent components
    of the noise; the gradient has their shape.
    """
    turn = np.exp(1j * np.dot(omega, mu)) * np.prod(law.characteristic(np.asarray(omega)))
    return omega * turn.real


def true_mean(omega: float, mu: float, law: Law) -> float:
    """E sin(omega (mu + xi)) = Im[exp(i omega mu) psi(omega)], in closed form."""
    return float((np.exp(1j * omega * mu) * law.characteristic(np.asarray(omega))).imag)


def scale_sides(phi: Wave, mu: float, sigma: float, law: Law) -> tuple[float, float]:
    """(SF, PD) of d/dsigma E phi(mu + sigma xi), xi ~ ``law``, each its own integral.

    dlog pi/dsigma = -(1 + xi p'(xi)/p(xi)) / sigma and da/dsigma = xi. The two differ by what x p(x) leaves at its
    ends and jumps, not p(x): at x = 0 a jump of p leaves nothing.
    """

    def sf(x: Numbers) -> Numbers:
        return -phi(mu + sigma * x) * (law.density(x) + x * law.slope(x)) / sigma

    return law.integral(sf), law.integral(lambda x: x * phi.slope(mu + sigma * x) * law.density(x))


def true_scale_gradient(phi: Wave, mu: float, sigma: float, law: Law, *, step: float = 1e-3) -> float:
    """d/dsigma of Im[exp(i omega mu) psi(omega sigma)]: the closed form, by Richardson's central differences.

    The error is of the order of ``step``^6, some 1e-12: psi is analytic in the scale for every law here.
    """

    def mean(scale: float) -> float:
        # sin(omega (mu + scale xi)) is the wave of frequency omega scale at the location mu / scale
        return true_mean(phi.omega * scale, mu / scale, law)

    halved = (step, step / 2, step / 4)
    first, second, third = ((mean(sigma + h) - mean(sigma - h)) / (2 * h) for h in halved)
    return (64 * third - 20 * second + first) / 45


def wave_variances(omega: float, mu: float, sigma: float, *, d_a: int = 1) -> tuple[float, float]:
    """Exact total variances (SF, PD) of the two gradients of E sin(omega a_1) under N(0, sigma^2 I) noise in R^d_a.

    ``mu`` is the mean of a_1. SF subtracts the signal's mean. Each coordinate that the signal does not depend on adds
    Var(phi) / sigma^2 to SF and nothing to PD. With u = (omega sigma)^2 and x standard normal, E cos(omega sigma x) =
    e^(-u/2) and its derivatives in u give every moment.
    """
    u = (omega * sigma) ** 2
    once, twice, s2 = math.exp(-u), math.exp(-2 * u), math.sin(omega * mu) ** 2
    c2 = 1 - 2 * s2
    along = 0.5 * (1 - c2 * (1 - 4 * u) * twice) - s2 * once * (1 - 2 * u) - u * (1 - s2) * once
    across = 0.5 * (1 - c2 * twice) - s2 * once
    pathwise = u * (0.5 * (1 + c2 * twice) - (1 - s2) * once)
    return (along + (d_a - 1) * across) / sigma**2, pathwise / sigma**2


def crossing(mu: float, sigma: float, *, d_a: int = 1) -> float:
    """The frequency omega beyond which the score function has the smaller variance on sin(omega a_1).

    The root of the difference of :func:`wave_variances`, which changes sign once between omega sigma = sqrt(d_a) / 2
    and 2 sqrt(d_a), whatever ``mu``.
    """

    def difference(omega: float) -> float:
        sf, pd = wave_variances(omega, mu, sigma, d_a=d_a)
        return sf - pd

    reach = math.sqrt(d_a) / sigma
    return float(optimize.brentq(difference, reach / 2, 2 * reach, xtol=1e-12))


def sampled_crossing(xi: Float[Tensor, " n"], mu: float, sigma: float) -> float:
    """:func:`crossing` in one dimension from sample variances of the two estimators on the noise ``xi``."""
    a = mu + xi

    def difference(omega: float) -> float:
        mean = math.sin(omega * mu) * math.exp(-((omega * sigma) ** 2) / 2)
        sf = (torch.sin(omega * a) - mean) * xi / sigma**2
        return (sf.var() - (omega * torch.cos(omega * a)).var()).item()

    return float(optimize.brentq(difference, 0.7 / sigma, 2 / sigma))


def phase_crossing(c: float) -> float:
    """Omega sigma = sqrt(u) at the crossing in one dimension, for c = cos(2 omega mu).

    The root of u = 1 + c (3u - 1) e^(-2u) + (1 - c) (2u - 1) e^(-u). It falls from 1.319 at a crest of the signal
    (c = -1) to 1.109 at a zero of it (c = 1).
    """

    def gap(u: float) -> float:
        return 1 + c * (3 * u - 1) * math.exp(-2 * u) + (1 - c) * (2 * u - 1) * math.exp(-u) - u

    return math.sqrt(float(optimize.brentq(gap, 0.5, 4, xtol=1e-14)))


def edge_second_moment(cut: float) -> float:
    """E[score^2; |xi| < 1 - cut] for Beta(2, 2) on (-1, 1): 3 log((2 - cut) / cut) - 6 (1 - cut).

    It grows by 3 for every factor e by which ``cut`` shrinks; the score's second moment, its limit, is infinite.
    """
    return 3 * math.log((2 - cut) / cut) - 6 * (1 - cut)


def edge_growth(phi: Wave, mu: float, scale: float, *, baseline: float) -> float:
    """By how much SF's sample second moment under Beta(2, 2) noise grows when n grows by a factor e.

    The largest of n draws come within n^(-1/2) of an end, so the sample sees the integral cut there: it grows by half
    of what the integral does, 3 / (4 l^2) [(phi(mu + l) - b)^2 + (phi(mu - l) - b)^2], l = scale sqrt(5), b the
    ``baseline``.
    """
    end = scale * math.sqrt(5)
    return 0.75 / end**2 * math.fsum((float(phi(mu + x)) - baseline) ** 2 for x in (-end, end))


def variance_ratio(sf: Float[Tensor, "n d_a"], pathwise: Float[Tensor, "n d_a"]) -> tuple[float, float]:
    """Var_SF / Var_PD of independent samples of either, total variances, and its standard error to first order."""
    (top, top_error), (bottom, bottom_error) = map(estimators.total_variance, (sf, pathwise))
    return top / bottom, top / bottom * math.hypot(top_error / top, bottom_error / bottom)


class Quadratic(NamedTuple):
    """phi(a) = a^T H a / 2 + b^T a of each row of ``a``, and the ``mu`` at which its slope is v = H mu + b."""

    H: Float[Tensor, "d_a d_a"]
    b: Float[Tensor, " d_a"]
    mu: Float[Tensor, " d_a"]

    def __call__(self, a: Float[Tensor, "n d_a"]) -> Float[Tensor, " n"]:
        """The signal itself."""
        return 0.5 * ((a @ self.H) * a).sum(-1) + a @ self.b

    def mean(self, sigma: float | int) -> float:
        """E phi(mu + xi) under Gaussian noise of scale ``sigma``."""
        return (self(self.mu[None])[0] + 0.5 * sigma**2 * torch.trace(self.H)).item()


def random_quadratic(d_a: int, *, generator: torch.Generator) -> Quadratic:
    """A symmetric Gaussian H, and the b for which the slope v at ``mu`` has the length of H's Frobenius norm."""
    H = torch.randn(d_a, d_a, generator=generator, dtype=torch.float64) / d_a**0.5
    H, v = (H + H.T) / 2, torch.randn(d_a, generator=generator, dtype=torch.float64)
    mu, v = torch.full((d_a,), d_a**-0.5, dtype=torch.float64), v / v.norm() * H.norm()
    return Quadratic(H, v - H @ mu, mu)
