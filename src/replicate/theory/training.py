"""Training a toy policy by GRPO or by backpropagation through time, many seeds at once.

Seeds are one batch axis under ``vmap``: ten seeds cost little more than one, and none sees another's numbers.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from replicate.theory.policy_gradients import clipped_surrogate, group_advantages
from replicate.theory.rollout import DifferentiableMDP, returns_to_go, rollout, sampled_return

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]


def bptt_gradient(mdp: DifferentiableMDP, *, gamma: float | int) -> Gradient:
    """(theta, s0 [n, state], noise [n, horizon, action]) -> d/dtheta of the batch's mean return, through
    time.
    """

    def gradient(theta: Tensor, s0: Tensor, noise: Tensor) -> Tensor:
        return grad(lambda theta: sampled_return(mdp, s0, noise, gamma=gamma, theta=theta).mean())(theta)

    return gradient


def grpo_gradient(
    mdp: DifferentiableMDP,
    *,
    group: int,
    gamma: float | int,
    baseline: str = "mean",
    scale: str = "std",
) -> Gradient:
    """As :func:`bptt_gradient`, but the gradient of (1) at theta_old: returns are numbers, states and actions
    data.

    Rows of s0 come in runs of ``group`` equal starting states.
    """

    def gradient(theta: Tensor, s0: Tensor, noise: Tensor) -> Tensor:
        path = rollout(mdp, s0, noise, theta=theta)
        R = returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]
        A = group_advantages(R.unflatten(0, (-1, group)), baseline=baseline, scale=scale).flatten()
        s, a = path.states[:, :-1], path.actions
        logp_old = mdp.log_prob(s, a, theta)
        return grad(lambda new: clipped_surrogate(mdp.log_prob(s, a, new), logp_old, A).mean())(theta)

    return gradient


def train(
    mdp: DifferentiableMDP,
    gradient: Gradient,
    *,
    starts: Callable[[int, torch.Generator], Tensor],
    prompts: int,
    group: int,
    horizon: int,
    gamma: float | int,
    updates: int,
    learning_rate: float,
    seeds: int,
    generator: torch.Generator,
    evaluate_every: int = 5,
) -> tuple[Float[Tensor, " evaluations"], Float[Tensor, "evaluations seeds"], Float[Tensor, "seeds params"]]:
    """Adam on ``gradient``; returns (trajectories seen, J on fixed evaluation noise, last theta).

    ``starts(n, generator)`` draws n starting states. Every update sees ``prompts`` of them, ``group``
    trajectories each. J is the mean return of 128 trajectories, the same for all seeds and evaluations.
    """
    theta = mdp.theta.expand(seeds, -1).clone()
    optimiser = torch.optim.Adam([theta], lr=learning_rate, maximize=True)
    test_s0 = starts(128, generator)
    test_noise = torch.randn(128, horizon, mdp.action_dim, generator=generator, dtype=torch.float64)
    J = vmap(lambda theta: sampled_return(mdp, test_s0, test_noise, gamma=gamma, theta=theta).mean())
    batched = vmap(gradient)
    seen, curve = [], []
    for update in range(updates + 1):
        if update % evaluate_every == 0:
            seen.append(float(update * prompts * group))
            curve.append(J(theta.detach()))
        s0 = starts(seeds * prompts, generator).unflatten(0, (seeds, prompts)).repeat_interleave(group, 1)
        shape = (seeds, prompts * group, horizon, mdp.action_dim)
        theta.grad = batched(theta.detach(), s0, torch.randn(shape, generator=generator, dtype=torch.float64))
        optimiser.step()
    return torch.tensor(seen, dtype=torch.float64), torch.stack(curve), theta.detach()
