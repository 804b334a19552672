"""Training a toy policy by GRPO or by backpropagation through time, many seeds at once.

Seeds are one batch axis under ``vmap``: ten seeds cost little more than one, and none sees another's numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from replicate.theory.policy_gradients import clipped_surrogate, group_advantages
from replicate.theory.rollout import DifferentiableMDP, returns_to_go, rollout, sampled_return

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def bptt_objective(mdp: DifferentiableMDP, *, gamma: float | int) -> Objective:
    """(theta, s0 [n, state], noise [n, horizon, action]) -> mean return, to differentiate through time."""

    def objective(theta: Tensor, s0: Tensor, noise: Tensor) -> Tensor:
        return sampled_return(mdp, s0, noise, gamma=gamma, theta=theta).mean()

    return objective


def grpo_objective(
    mdp: DifferentiableMDP,
    *,
    group: int,
    gamma: float | int,
    baseline: str = "mean",
    scale: str = "std",
) -> Objective:
    """As :func:`bptt_objective`, but (1) at theta_old = theta: returns are numbers, states and actions data.

    Rows of s0 come in runs of ``group`` equal starting states. Every ratio is 1, so the clip is silent.
    """

    def objective(theta: Tensor, s0: Tensor, noise: Tensor) -> Tensor:
        old = theta.detach()
        path = rollout(mdp, s0, noise, theta=old)
        R = returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]
        A = group_advantages(R.unflatten(0, (-1, group)), baseline=baseline, scale=scale).flatten()
        s, a = path.states[:, :-1], path.actions
        return clipped_surrogate(mdp.log_prob(s, a, theta), mdp.log_prob(s, a, old), A).mean()

    return objective


def gradients_per_seed(
    objective: Objective,
    thetas: Float[Tensor, "seeds params"],
    s0: Float[Tensor, "seeds n state"],
    noise: Float[Tensor, "seeds n horizon action"],
) -> Float[Tensor, "seeds params"]:
    """The gradient of each seed's own objective: seeds do not meet, so that of the sum holds them all."""
    thetas = thetas.detach().requires_grad_()
    return torch.autograd.grad(vmap(objective)(thetas, s0, noise).sum(), thetas)[0]


def train(
    mdp: DifferentiableMDP,
    objective: Objective,
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
    """Adam, ascending ``objective``; returns (trajectories seen, J on fixed evaluation noise, last theta).

    ``starts(n, generator)`` draws n starting states. Every update sees ``prompts`` of them, ``group`` trajectories
    each. J is the mean return of 128 trajectories, the same for all seeds and evaluations.
    """
    theta = mdp.theta.expand(seeds, -1).clone()
    optimiser = torch.optim.Adam([theta], lr=learning_rate, maximize=True)
    test_s0 = starts(128, generator)
    test_noise = torch.randn(128, horizon, mdp.action_dim, generator=generator, dtype=torch.float64)
    J = vmap(lambda theta: sampled_return(mdp, test_s0, test_noise, gamma=gamma, theta=theta).mean())
    seen, curve = [], []
    for update in range(updates + 1):
        if update % evaluate_every == 0:
            seen.append(float(update * prompts * group))
            curve.append(J(theta.detach()))
        s0 = starts(seeds * prompts, generator).unflatten(0, (seeds, prompts)).repeat_interleave(group, 1)
        shape = (seeds, prompts * group, horizon, mdp.action_dim)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        theta.grad = gradients_per_seed(objective, theta, s0, noise)
        optimiser.step()
    return torch.tensor(seen, dtype=torch.float64), torch.stack(curve), theta.detach()


def train_at_best_rate(
    mdp: DifferentiableMDP,
    objective: Objective,
    *,
    learning_rates: Sequence[float],
    seed: int,
    **options: Any,
) -> tuple[float, Float[Tensor, " evaluations"], Float[Tensor, "evaluations seeds"]]:
    """:func:`train` at each of ``learning_rates``, keeping the one whose J is best on average over the whole curve.

    Returns (rate, trajectories seen, J). Every rate starts from a generator with this ``seed``, so that all rates, and
    all objectives called with it, meet the same starting states and noise. ``options`` are the other arguments of
    :func:`train`. Raises ``ValueError`` when there is no rate to try.
    """
    if not learning_rates:
        raise ValueError(f"learning_rates: expected at least one, got {learning_rates!r}")
    runs = {}
    for rate in learning_rates:
        generator = torch.Generator().manual_seed(seed)
        seen, curve, _ = train(mdp, objective, learning_rate=rate, generator=generator, **options)
        runs[rate] = seen, curve
    best = max(runs, key=lambda rate: runs[rate][1].mean().item())
    return best, *runs[best]
