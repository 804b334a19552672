"""Exact moments of gradient estimators on the sine map, by a transfer operator on the circle: no samples, no adjoint.

The map's reward and its sensitivity see the state only through its angle. What an estimator has accumulated along a
trajectory is a pair (A, B), of which B is the estimate in the end:

- pathwise (7): A = ds_t/dtheta, A' = gain cos(s) A + 1, and B grows by A times the slope of the reward;
- score function with reward-to-go and the mean reward of each step as baseline: A is the sum of the scores so far, A'
  = A + score, and B grows by A' times (r - E r).

Both are linear, so the moments of A and B, each as a density over the angle, follow a linear recursion. On a grid of
equal steps its integrals converge faster than any power of the step. The score function with the whole return, R times
the sum of all scores, needs the moments of R and the scores up to second order each.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from replicate.theory.toys import SineMap

_Density = Float[np.ndarray, " points"]
_Kernel = Float[np.ndarray, "points points"]
# The noise is wrapped round the circle this often at most.
_TURNS = 12


class Estimate(NamedTuple):
    """Mean and variance of one estimator of dJ/dtheta over one trajectory of ``horizon`` steps from s_0 = 0."""

    estimator: str
    horizon: int
    mean: float
    variance: float


class Growth(NamedTuple):
    """Growth per step of the squared sensitivity (ds_t/ds_0)^2: of its mean, and of a typical trajectory."""

    mean_square: float
    typical: float


def estimates(mdp: SineMap, horizons: list[int], *, points: int = 128) -> list[Estimate]:
    """The exact estimates "PD", "SF" (whole return) and "SF, to go" (reward-to-go, mean baseline) at each horizon.

    Rewards are at t = 0..horizon-1, undiscounted. The baseline of the last is E r_t, the limit of leaving one out of a
    large group. Raises ``ValueError`` for a horizon below 1 and for noise too narrow for ``points``.
    """
    if min(horizons) < 1:
        raise ValueError(f"horizons: expected at least 1, got {min(horizons)}")
    s, kernels = _circle(mdp, points)
    pathwise = _Pair(mdp.gain * np.cos(s), (kernels[0],) * 3, points)
    to_go = _Pair(np.ones(points), kernels, points)
    whole = {(i, j): _start(points) * (i == j == 0) for i in range(3) for j in range(3)}
    found = []
    for t in range(1, max(horizons) + 1):
        r = np.cos(s)
        to_go.step(r - (r * to_go.density).sum(), after=True)
        pathwise.step(-np.sin(s), after=False)
        whole = _step_products(whole, r, kernels)
        if t in horizons:
            product = whole[1, 1].sum(), whole[2, 2].sum()
            for name, (mean, square) in (
                ("PD", pathwise.moments()),
                ("SF", product),
                ("SF, to go", to_go.moments()),
            ):
                found.append(Estimate(name, t, float(mean), float(square - mean**2)))
    return found


def growth(mdp: SineMap, *, points: int = 128) -> Growth:
    """log of the largest eigenvalue of p(s' given s) (gain cos s)^2, and twice the Lyapunov exponent.

    The second is the mean of log (gain cos s)^2 under the stationary density; a positive one is what chaos means.
    """
    s, (kernel, _, _) = _circle(mdp, points)
    square = (mdp.gain * np.cos(s)) ** 2
    values, vectors = np.linalg.eig(kernel)
    stationary = vectors[:, values.real.argmax()].real
    stationary = stationary / stationary.sum()
    # log cos^2 s = -2 log 2 - 2 sum_k (-1)^k cos(2 k s) / k: the moments of a smooth density die out, its grid errs.
    k = np.arange(1, points // 4)
    cosines = np.cos(2 * k[:, None] * s) @ stationary
    typical = 2 * math.log(mdp.gain / 2) - 2 * ((-1.0) ** k * cosines / k).sum()
    radius = np.abs(np.linalg.eigvals(kernel * square)).max()
    return Growth(float(np.log(radius)), float(typical))


def _circle(mdp: SineMap, points: int) -> tuple[_Density, tuple[_Kernel, _Kernel, _Kernel]]:
    """Angles, and the kernels E[score^k; s' given s] for k = 0, 1, 2, to (rows) and from (columns)."""
    s, step = 2 * math.pi * np.arange(points) / points, 2 * math.pi / points
    if mdp.noise_std < 4 * step:
        raise ValueError(
            f"points: expected a step of at most a quarter of the noise, {mdp.noise_std}, got {step:.3g}"
        )
    turns = 2 * math.pi * np.arange(-_TURNS, _TURNS + 1)[:, None, None]
    mean = mdp.gain * np.sin(s) + mdp.theta.item()
    x = (s[:, None] + turns - mean) / mdp.noise_std
    p = np.exp(-(x**2) / 2) * step / (math.sqrt(2 * math.pi) * mdp.noise_std)
    return s, tuple((p * (x / mdp.noise_std) ** k).sum(0) for k in range(3))


def _start(points: int) -> _Density:
    """All of the mass at s_0 = 0."""
    return np.eye(points)[0]


class _Pair:
    """Densities over the angle of 1, A, A^2, B, AB, B^2; see the module."""

    def __init__(self, factor: _Density, kernels: tuple[_Kernel, _Kernel, _Kernel], points: int) -> None:
        self.factor, self.kernels = factor, kernels
        self.density = _start(points)
        self.A = self.AA = self.B = self.AB = self.BB = np.zeros(points)

    def step(self, weight: _Density, *, after: bool) -> None:
        """A becomes A' = factor(s) A + increment, s moves on, and B grows by weight(s) A, or A' if ``after``."""
        w, c, (none, first, second) = weight, self.factor, self.kernels
        if not after:
            self.BB = self.BB + 2 * w * self.AB + w**2 * self.AA
            self.AB, self.B, w = self.AB + w * self.AA, self.B + w * self.A, 0 * w
        one, A, AA, AB = self.density, c * self.A, c**2 * self.AA, c * self.AB  # of factor(s) A in place of A
        linear = first @ (2 * w * (self.B + w * A)) + second @ (w**2 * one)
        self.BB = none @ (self.BB + 2 * w * AB + w**2 * AA) + linear
        self.AB = none @ (AB + w * AA) + first @ (self.B + 2 * w * A) + second @ (w * one)
        self.B = none @ (self.B + w * A) + first @ (w * one)
        self.AA = none @ AA + 2 * first @ A + second @ one
        self.A = none @ A + first @ one
        self.density = none @ one

    def moments(self) -> tuple[float, float]:
        """E B and E B^2."""
        return self.B.sum(), self.BB.sum()


def _step_products(
    whole: dict[tuple[int, int], _Density], reward: _Density, kernels: tuple[_Kernel, _Kernel, _Kernel]
) -> dict[tuple[int, int], _Density]:
    """E[R^i Z^j; s] after one more reward and one more score, i, j = 0, 1, 2."""
    grown = {
        (i, j): sum(math.comb(i, k) * reward ** (i - k) * whole[k, j] for k in range(i + 1)) for i, j in whole
    }
    return {
        (i, j): sum(math.comb(j, k) * kernels[j - k] @ grown[i, k] for k in range(j + 1)) for i, j in whole
    }
