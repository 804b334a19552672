"""The score-function and the pathwise estimator of d/dmu E[phi(mu + xi)], equations (2), (3) and Lemma 1, (10).

Every sample of either estimator is returned, not only the mean, so that means, variances and covariances are the
caller's to take. Both estimators draw the same noise from generators in the same state. A slope is always measured: by
autograd, and where autograd has no graph to follow (a step written with ``>``, a uniform density) by differences.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate
from torch import Tensor
from torch.distributions import Distribution, Gumbel, Laplace, Normal, StudentT, constraints

Phi = Callable[[Tensor], Tensor]

# Half the width of a difference where autograd has no graph. Narrow, so that hardly a sample has a jump within it; a
# smooth slope of order one is still good to seven digits.
_NEAR = 1e-9


class Logistic(Distribution):
    """The logistic law with location 0: density e^(-x/s) / (s (1 + e^(-x/s))^2). torch.distributions has none."""

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012  (torch's own convention)
    support = constraints.real

    def __init__(self, scale: float | int | Tensor) -> None:
        self.scale = torch.as_tensor(scale, dtype=torch.float64)
        super().__init__(batch_shape=self.scale.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; stable far out in both tails."""
        x = value / self.scale
        return -x - 2 * torch.nn.functional.softplus(-x) - self.scale.log()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Inverse-CDF samples from uniforms kept off 0, where the logit is infinite."""
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=torch.float64).clamp(min=1e-300)
        return self.scale * (u.log() - (-u).log1p())


def shift_families(scale: float | int = 1.0) -> dict[str, Distribution]:
    """Noise laws that meet Lemma 1's conditions, of standard deviation ``scale`` each; Gumbel's mean is not
    0.

    Laplace's density has a kink and Student's t (5 degrees of freedom) heavy tails; both vanish at infinity.
    """
    s = torch.tensor(float(scale), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    return {
        "Gaussian": Normal(zero, s),
        "logistic": Logistic(s * math.sqrt(3) / math.pi),
        "Student-t": StudentT(torch.tensor(5.0, dtype=torch.float64), zero, s * math.sqrt(3 / 5)),
        "Laplace": Laplace(zero, s / math.sqrt(2)),
        "Gumbel": Gumbel(zero, s * math.sqrt(6) / math.pi),
    }


def draw(
    noise: Distribution, samples: int, dim: int, *, generator: torch.Generator
) -> Float[Tensor, "{samples} {dim}"]:
    """``samples`` rows of ``dim`` components from ``noise``, in float64, from ``generator`` alone.

    ``noise`` is a scalar law (components independent), one with batch shape [dim], or one with event shape [dim].
    torch.distributions only know the global generator, so that one is seeded from ours and put back afterwards.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    own = tuple(noise.batch_shape) + tuple(noise.event_shape)
    if own not in ((), (dim,)):
        raise ValueError(f"noise: expected a law of shape [] or [{dim}], got {list(own)}")
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        xi = noise.sample((samples, dim) if own == () else (samples,))
    return xi.to(torch.float64)


def difference_quotients(
    f: Phi,
    x: Float[Tensor, "samples dim"],
    *,
    step: float,
    low: Tensor | float = -math.inf,
    high: Tensor | float = math.inf,
) -> Float[Tensor, "samples dim"]:
    """(f(x + h e_i) - f(x - h e_i)) / 2h in every coordinate, h = ``step``; f maps [samples, dim] to [samples].

    A point that would leave the open interval from ``low`` to ``high`` is replaced by x itself: one-sided there.
    """
    columns = []
    for i in range(x.shape[1]):
        shift = step * torch.eye(x.shape[1], dtype=x.dtype)[i]
        right = torch.where(x + shift < high, x + shift, x)
        left = torch.where(x - shift > low, x - shift, x)
        columns.append((f(right) - f(left)) / (right - left)[:, i])
    return torch.stack(columns, 1)


def score(noise: Distribution, xi: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples dim"]:
    """dlog p(xi)/dxi by autograd, or by differences within the support where log p carries no graph (uniform)."""
    xi = xi.detach().requires_grad_()
    log_p = noise.log_prob(xi)
    if log_p.requires_grad:
        return torch.autograd.grad(log_p.sum(), xi)[0]
    low = getattr(noise.support, "lower_bound", -math.inf)
    high = getattr(noise.support, "upper_bound", math.inf)

    def by_sample(x: Tensor) -> Tensor:
        return noise.log_prob(x).reshape(len(x), -1).sum(-1)

    return difference_quotients(by_sample, xi.detach(), step=_NEAR, low=low, high=high)


def score_function(
    phi: Phi,
    mu: Float[Tensor, " dim"],
    noise: Distribution,
    samples: int,
    *,
    generator: torch.Generator,
    baseline: float | int = 0.0,
) -> Float[Tensor, "{samples} dim"]:
    """Per-sample phi(a) dlog p(a - mu)/dmu with a = mu + xi, xi ~ ``noise``: equation (2).

    ``phi`` maps [samples, dim] to [samples] and need not be differentiable nor continuous. A constant ``baseline`` is
    subtracted from it. Raises ``ValueError`` for an empty sample, a law that does not fit ``mu``, or a bad phi.
    """
    xi = draw(noise, samples, len(mu), generator=generator)
    value = _evaluate(phi, mu + xi) - baseline
    # dlog p(a - mu)/dmu = -(dlog p/dxi)(a - mu)
    return value.unsqueeze(-1) * -score(noise, xi)  # (2)


def pathwise(
    phi: Phi,
    mu: Float[Tensor, " dim"],
    noise: Distribution,
    samples: int,
    *,
    generator: torch.Generator,
) -> Float[Tensor, "{samples} dim"]:
    """Per-sample (da/dmu)^T dphi/da = dphi/da at a = mu + xi, xi ~ ``noise``: equation (3).

    By autograd, or by central differences on each sample where the values of ``phi`` carry no graph. Where ``phi`` is
    piecewise constant this comes out as zero, whatever the true gradient. Errors as :func:`score_function`.
    """
    a = (mu + draw(noise, samples, len(mu), generator=generator)).detach().requires_grad_()
    value = _evaluate(phi, a)
    if value.requires_grad:
        return torch.autograd.grad(value.sum(), a)[0]  # (3)
    return difference_quotients(phi, a.detach(), step=_NEAR)


def _evaluate(phi: Phi, a: Tensor) -> Tensor:
    value = phi(a)
    if value.shape != a.shape[:1]:
        raise ValueError(f"phi: expected values of shape [{a.shape[0]}], got {list(value.shape)}")
    return value


def expectation(f: Phi, noise: Distribution) -> float:
    """E[f(xi)] of a scalar law by tanh-sinh quadrature, f mapping [n, 1] to [n]; some 1e-12 of error, no sampling.

    The axis is cut at 0, so that a kink of the density there (Laplace) falls on an end, where the rule allows it, and
    at a few scales on either side, so that no level of the rule misses the bulk.
    """

    def integrand(x: np.ndarray) -> np.ndarray:
        xi = torch.from_numpy(np.asarray(x, dtype=float).reshape(-1, 1))
        return (f(xi) * noise.log_prob(xi).exp()[:, 0]).detach().numpy().reshape(np.shape(x))

    low, high = _support_ends(noise)
    cuts = [x for x in (-10.0, -3.0, 0.0, 3.0, 10.0) if low < x < high]
    ends = itertools.pairwise([low, *cuts, high])
    return math.fsum(
        integrate.tanhsinh(integrand, a, b, atol=1e-14, rtol=1e-13, minlevel=5).integral for a, b in ends
    )


def _support_ends(noise: Distribution) -> tuple[float, float]:
    """The two ends of a scalar law's support, infinite ones included."""
    support = noise.support
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    return float(low), float(high)


def optimal_baseline(
    phi: Phi, mu: Float[Tensor, " dim"], noise: Distribution, samples: int, *, generator: torch.Generator
) -> float:
    """The constant b that minimises the total variance of (phi - b) score: E[phi |score|^2] / E|score|^2, sampled.

    Estimate it on other samples than those it is used on; with itself it would bias the gradient.
    """
    xi = draw(noise, samples, len(mu), generator=generator)
    weight = score(noise, xi).square().sum(-1)
    return ((_evaluate(phi, mu + xi) * weight).mean() / weight.mean()).item()


def quadratic_variances(
    H: Float[Tensor, "dim dim"],
    b: Float[Tensor, " dim"],
    mu: Float[Tensor, " dim"],
    sigma: float | int,
    *,
    baseline: float | int = 0.0,
) -> tuple[float, float]:
    """Exact total variances (SF, PD) of the two estimators for phi(a) = a^T H a / 2 + b^T a and Gaussian noise.

    With e standard normal, a = mu + sigma e, v = H mu + b and c = phi(mu) - baseline: PD is v + sigma H e and SF is
    (c + sigma v.e + sigma^2 e^T H e / 2) e / sigma; the moments are those of e, E[q(e) |e|^2] = (d + k) E[q(e)] for q
    homogeneous of degree k. ``H`` must be symmetric.
    """
    if not torch.allclose(H, H.T, rtol=1e-12, atol=0):
        raise ValueError("H: expected a symmetric matrix, got one that is not")
    d = len(mu)
    v = H @ mu + b
    c = 0.5 * mu @ H @ mu + b @ mu - baseline
    trace, frobenius = torch.trace(H), H.square().sum()
    second_moment = (
        c**2 * d / sigma**2
        + (d + 2) * (c * trace + v @ v)
        + sigma**2 * (d + 4) * (trace**2 + 2 * frobenius) / 4
    )
    return (second_moment - v @ v).item(), (sigma**2 * frobenius).item()


def total_variance(samples: Float[Tensor, "n dim"]) -> tuple[float, float]:
    """Total variance of per-sample gradients, the trace of their covariance (ddof 1), and its standard error.

    The error is that of the mean of n squared deviations, so it holds for large n and a finite fourth moment. Raises
    ``ValueError`` for fewer than two rows.
    """
    n = len(samples)
    if n < 2:
        raise ValueError(f"samples: expected at least 2 rows for a variance, got {n}")
    square = (samples - samples.mean(0)).square().sum(-1)
    return (square.sum() / (n - 1)).item(), (square.std() / n**0.5).item()
