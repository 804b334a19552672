"""Expectations over a group of two actions by quadrature: what (11) gives with GRPO's own advantage at N = 2.

With two members the advantage jumps, up to the small number in its denominator, wherever both have the same signal.
The plane of the two actions is therefore cut along these lines, and every piece is integrated by a rule that may have
spikes at the ends of its interval (tanh-sinh). Nothing is sampled.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from replicate.bisection import bisect

Signal = Callable[[Tensor], Tensor]
"""A differentiable signal of one action, elementwise on any shape."""

# Where the axis is cut besides, in noise scales from the mean, so that no piece is much wider than the density. What
# lies beyond the ends adds less than 1e-18.
_CUTS = (-9.0, -3.5, -1.0, 1.0, 3.5, 9.0)
_STEPS = 60  # halvings of a bracket, down to round-off


def slope(signal: Signal) -> Signal:
    """The derivative of ``signal``, elementwise."""
    return lambda a: vmap(grad(signal))(a.flatten()).view(a.shape)


def turning_points(signal: Signal, low: float, high: float, *, grid: int = 2001) -> Float[Tensor, " points"]:
    """Where the slope of ``signal`` changes sign between ``low`` and ``high``, in order.

    Two that share a cell of the grid are missed.
    """
    derivative = slope(signal)
    x = torch.linspace(low, high, grid, dtype=torch.float64)
    sign = derivative(x).sign()
    k = torch.nonzero(sign[1:] != sign[:-1])[:, 0]
    if len(k) == 0:  # monotone
        return x[:0]
    return sum(bisect(lambda m: derivative(m).sign() == sign[k], x[k], x[k + 1], steps=_STEPS)) / 2


def pair_expectation(
    f: Callable[[Tensor, Tensor], Tensor], signal: Signal, *, mu: float | int, sigma: float | int
) -> float:
    """E[f(a, b)] for independent a, b ~ N(mu, sigma^2), where f may spike or jump where signal(a) = signal(b).

    f maps two equal shapes to that shape. The error is below 1e-6 for spikes no narrower than 1e-4. Raises
    ``ValueError`` unless ``sigma`` is positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    cuts = mu + sigma * torch.tensor(_CUTS, dtype=torch.float64)
    turns = turning_points(signal, cuts[0].item(), cuts[-1].item())
    ends = torch.cat([cuts, turns]).unique()
    # The inner integral has a corner wherever a's signal passes one of the signal's extreme values.
    corners = torch.cat([ends, _where_it_takes(signal(turns), signal, ends).flatten()]).unique()
    a, outer = (x.flatten() for x in _tanh_sinh(corners[:-1], corners[1:]))
    level = torch.cat([_where_it_takes(signal(a), signal, ends), ends.expand(len(a), -1)], 1).sort(1).values
    b, inner = _tanh_sinh(level[:, :-1], level[:, 1:])  # [nodes of a, pieces, nodes]
    density = torch.distributions.Normal(mu, sigma)
    values = f(a[:, None, None].expand_as(b), b) * density.log_prob(b).exp() * inner
    return (values.sum((1, 2)) * density.log_prob(a).exp() * outer).sum().item()


def _where_it_takes(
    values: Float[Tensor, " values"], signal: Signal, ends: Float[Tensor, " ends"]
) -> Float[Tensor, "values pieces"]:
    """Where the signal takes each value on each of its monotone pieces; an end of a piece that does not take it."""
    left, right = (x.expand(len(values), -1) for x in (ends[:-1], ends[1:]))
    rising = signal(right) > signal(left)
    return sum(bisect(lambda m: (signal(m) < values[:, None]) == rising, left, right, steps=_STEPS)) / 2


def _tanh_sinh(left: Tensor, right: Tensor, *, nodes: int = 61) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the tanh-sinh rule on intervals of any leading shape: a last axis of ``nodes`` is added."""
    t = torch.linspace(-3.4, 3.4, nodes, dtype=torch.float64)
    share = torch.sigmoid(torch.pi * t.sinh())  # of the way from left to right
    width = (right - left).unsqueeze(-1)
    # From the nearer end, so that nodes close to it keep their digits.
    x = torch.where(t < 0, left.unsqueeze(-1) + width * share, right.unsqueeze(-1) - width * share.flip(0))
    return x, width * share * share.flip(0) * torch.pi * t.cosh() * (t[1] - t[0])
