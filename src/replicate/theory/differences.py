"""Equations (5) and (7) without derivative code: differences of sampled returns, the noise held fixed.

The error of an extrapolated central difference is of order step^4 plus round-off over the step: some 1e-10 relative on
smooth tasks, more where they bend sharply.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.rollout import (
    Actions,
    DifferentiableMDP,
    Rollout,
    Starts,
    States,
    return_from,
    returns_to_go,
    rollout,
)

_STEP = 5e-4


def finite_differences(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "batch dim"], *, step: float = _STEP
) -> Float[Tensor, "batch dim"]:
    """Row-wise gradient of f: [batch, dim] -> [batch] by extrapolated central differences."""
    shifts = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack([_extrapolated(lambda h, e=e: f(x + h * e), step) for e in shifts], 1)


def differences_in_theta(
    quantity: Callable[[Rollout], Float[Tensor, "*shape"]],
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    transition_noise: States | None = None,
    step: float = _STEP,
) -> Float[Tensor, "*shape params"]:
    """The derivative in theta of any quantity of the rollout, start and noise held fixed."""

    def at(theta: Tensor) -> Tensor:
        return quantity(rollout(mdp, s0, noise, theta=theta, transition_noise=transition_noise))

    shifts = torch.eye(len(mdp.theta), dtype=s0.dtype)
    return torch.stack([_extrapolated(lambda h, e=e: at(mdp.theta + h * e), step) for e in shifts], -1)


def _extrapolated(f: Callable[[float], Tensor], step: float) -> Tensor:
    """The slope of f at 0: Richardson's combination of two central differences, of which h^2 cancels."""
    coarse, fine = ((f(h) - f(-h)) / (2 * h) for h in (step, step / 2))
    return (4 * fine - coarse) / 3


def costates_by_finite_differences(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
    step: float = _STEP,
) -> Float[Tensor, "batch horizon+1 state"]:
    """Definition (5): differences of G_t in s_t, the rollout started anew at each s_t."""
    states = rollout(mdp, s0, noise, transition_noise=transition_noise).states
    rows = [
        finite_differences(return_from(mdp, t, noise, transition_noise, gamma), s, step=step)
        for t, s in enumerate(states.unbind(1))
    ]
    return torch.stack(rows, 1)


def policy_gradient_by_finite_differences(
    mdp: DifferentiableMDP,
    s0: Starts,
    noise: Actions,
    *,
    gamma: float | int,
    transition_noise: States | None = None,
    step: float = _STEP,
) -> Float[Tensor, "batch params"]:
    """dG_0/dtheta of each trajectory: the integrand of (7)."""

    def G_0(path: Rollout) -> Tensor:
        return returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]

    return differences_in_theta(G_0, mdp, s0, noise, transition_noise=transition_noise, step=step)
