"""How far apart two numbers are: relative errors for exact identities, z-scores and slopes for statistical ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

Numbers = Sequence[float | int] | np.ndarray


def relative_error(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> float:
    """|x - y| / max(|x|, |y|) in the Euclidean norm over all entries; 0 when both vanish, NaN when either has one.

    Raises ``ValueError`` when the shapes differ, so that nothing is broadcast into agreement.
    """
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    scale = max(x.norm().item(), y.norm().item())
    return (x - y).norm().item() / scale if scale != 0 else 0.0


class ZTest(NamedTuple):
    """The means of ``n`` samples against a truth: standard errors and z-scores per coordinate."""

    n: int
    mean: Float[Tensor, " dim"]
    standard_error: Float[Tensor, " dim"]
    z: Float[Tensor, " dim"]

    @property
    def worst(self) -> float:
        """The largest |z| over the coordinates."""
        return self.z.abs().max().item()


def z_test(samples: Float[Tensor, "n dim"], truth: Float[Tensor, " dim"]) -> ZTest:
    """Tests E[samples] = truth in each coordinate, with the standard error estimated from the samples.

    ``samples`` are independent rows. A coordinate whose samples are all alike has no standard error: its z is 0 if it
    equals the truth to 1e-12 relative and infinite otherwise. Raises ``ValueError`` for fewer than two rows.
    """
    n = samples.shape[0]
    if n < 2:
        raise ValueError(f"samples: expected at least 2 rows for a standard error, got {n}")
    mean, error = samples.mean(0), samples.std(0) / n**0.5
    gap = mean - truth
    round_off = 1e-12 * torch.maximum(mean.abs(), truth.abs())
    constant = torch.zeros_like(gap).masked_fill(gap.abs() > round_off, torch.inf)
    return ZTest(n, mean, error, torch.where(error > round_off, gap / error, constant))


def angle(x: Float[Tensor, " dim"], y: Float[Tensor, " dim"]) -> float:
    """The angle between two vectors in degrees, exact also where it is small."""
    x, y = x / x.norm(), y / y.norm()
    return 2 * torch.atan2((x - y).norm(), (x + y).norm()).rad2deg().item()


def worst_z_bound(dim: int, *, false_alarm: float = 1e-4) -> float:
    """The |z| that the worst of ``dim`` unbiased coordinates exceeds with probability at most ``false_alarm``."""
    return float(stats.norm.isf(false_alarm / (2 * dim)))


class Slope(NamedTuple):
    """A fitted slope with the ends of its 95 % interval (Student's t)."""

    slope: float
    low: float
    high: float


def log_slope(x: Numbers, y: Numbers, *, log_x: bool = True) -> Slope:
    """Least-squares slope of log y against log x (or against x), with its 95 % interval.

    Raises ``ValueError`` with fewer than three points or values that have no logarithm.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or len(x) != len(y):
        raise ValueError(f"x, y: expected at least 3 points each, got {len(x)} and {len(y)}")
    if (y <= 0).any() or (log_x and (x <= 0).any()):
        raise ValueError("x, y: expected positive values for a logarithm, got some that are not")
    fit = stats.linregress(np.log(x) if log_x else x, np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half))


def monte_carlo_slope(
    samples: Float[Tensor, "n dim"], truth: Float[Tensor, " dim"], sizes: Sequence[int], *, blocks: int
) -> tuple[list[float], list[float], Slope]:
    """How fast the mean of n samples approaches ``truth``: (rms errors, their standard errors, slope in log-log).

    For each size n, ``blocks`` disjoint means of n fresh rows give one rms error, so the points are independent and the
    slope's interval comes from their own standard errors, not from the scatter of a few points. Raises ``ValueError``
    when ``samples`` has fewer than blocks x sum(sizes) rows.
    """
    if len(samples) < blocks * sum(sizes):
        raise ValueError(f"samples: expected at least {blocks * sum(sizes)} rows, got {len(samples)}")
    rms, errors, used = [], [], 0
    for n in sizes:
        means = samples[used : used + blocks * n].unflatten(0, (blocks, n)).mean(1)
        used += blocks * n
        square = (means - truth).square().sum(-1)
        rms.append(square.mean().sqrt().item())
        errors.append((square.std() / blocks**0.5).item() / (2 * rms[-1]))
    x, y = np.log(np.asarray(sizes, float)), np.log(rms)
    weight = (np.asarray(rms) / np.asarray(errors)) ** 2
    centred = x - np.average(x, weights=weight)
    spread = (weight * centred**2).sum()
    slope, half = float((weight * centred * y).sum() / spread), 1.96 / spread**0.5
    return rms, errors, Slope(slope, slope - half, slope + half)
