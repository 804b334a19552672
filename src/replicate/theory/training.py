"""Training a toy policy by the policy-gradient family or by backpropagation through time, many seeds at once.

Seeds and learning rates are one batch axis under ``vmap``: ten seeds cost little more than one, and none sees another's
numbers. A rate is tuned on seeds other than those that are reported, on what stands at the end of training.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from replicate.theory.policy_gradients import clipped_surrogate, group_advantages
from replicate.theory.rollout import DifferentiableMDP, returns_to_go, rollout, sampled_return

Objective = Callable[..., Tensor]
"""(theta, s0 [n, state], noise [n, horizon, action]) -> a scalar to ascend; a critic's weights may follow."""


class Method(NamedTuple):
    """What is ascended, and how a critic is fitted to one batch of rollouts where there is one."""

    objective: Objective
    fit: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


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
    exchanged: bool = False,
) -> Objective:
    """As :func:`bptt_objective`, but (1) at theta_old = theta: returns are numbers, states and actions data.

    Rows of s0 come in runs of ``group``, equal starting states as a rule. Every ratio is 1, so the clip is silent.
    ``exchanged`` is a planted error: each completion gets the advantage of its neighbour in the group.
    """

    def objective(theta: Tensor, s0: Tensor, noise: Tensor) -> Tensor:
        old = theta.detach()
        path = rollout(mdp, s0, noise, theta=old)
        R = returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]
        A = group_advantages(R.unflatten(0, (-1, group)), baseline=baseline, scale=scale)
        A = (A.roll(1, 1) if exchanged else A).flatten()
        s, a = path.states[:, :-1], path.actions
        return clipped_surrogate(mdp.log_prob(s, a, theta), mdp.log_prob(s, a, old), A).mean()

    return objective


def critic_method(
    mdp: DifferentiableMDP,
    *,
    gamma: float | int,
    gae_lambda: float | int,
    features: Callable[[Tensor], Tensor],
    ridge: float | int = 1e-3,
) -> Method:
    """PPO's actor at theta_old = theta: generalised advantages of a critic linear in ``features`` of the state.

    The critic is fitted to the *previous* batch by ridge regression, one set of weights a step. ``gae_lambda`` is GAE's
    decay.
    """

    def fit(theta: Tensor, s0: Tensor, noise: Tensor) -> Float[Tensor, "horizon features"]:
        path = rollout(mdp, s0, noise, theta=theta)
        y = returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, :-1].T.unsqueeze(-1)
        X = features(path.states[:, :-1]).transpose(0, 1)  # [horizon, n, features]
        penalty = ridge * X.shape[1] * torch.eye(X.shape[-1], dtype=X.dtype)
        return torch.linalg.solve(X.mT @ X + penalty, X.mT @ y).squeeze(-1)

    def objective(theta: Tensor, s0: Tensor, noise: Tensor, critic: Tensor) -> Tensor:
        old = theta.detach()
        path = rollout(mdp, s0, noise, theta=old)
        V = torch.einsum("ntf,tf->nt", features(path.states[:, :-1]), critic)
        after = torch.cat([V[:, 1:], path.terminal.unsqueeze(1)], 1)
        delta = path.rewards + gamma * after - V
        A = returns_to_go(delta, torch.zeros_like(path.terminal), gamma=gamma * gae_lambda)[:, :-1]
        discounts = gamma ** torch.arange(A.shape[1], dtype=A.dtype)
        return (discounts * A.detach() * mdp.log_prob(path.states[:, :-1], path.actions, theta)).sum(1).mean()

    return Method(objective, fit)


def gradients_per_seed(
    objective: Objective,
    thetas: Float[Tensor, "seeds params"],
    s0: Float[Tensor, "seeds n state"],
    noise: Float[Tensor, "seeds n horizon action"],
    *more: Float[Tensor, "seeds ..."],
) -> Float[Tensor, "seeds params"]:
    """The gradient of each seed's own objective: seeds do not meet, so that of the sum holds them all."""
    thetas = thetas.detach().requires_grad_()
    return torch.autograd.grad(vmap(objective)(thetas, s0, noise, *more).sum(), thetas)[0]


def train(
    mdp: DifferentiableMDP,
    method: Method | Objective,
    *,
    starts: Callable[[int, torch.Generator], Tensor],
    prompts: int,
    group: int,
    horizon: int,
    gamma: float | int,
    updates: int,
    learning_rate: float | Sequence[float],
    seeds: int,
    generator: torch.Generator,
    evaluate_every: int = 5,
    value: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, " evaluations"], Float[Tensor, "evaluations lanes"], Float[Tensor, "lanes params"]]:
    """Adam, ascending the method; returns (rollouts seen, J on fixed evaluation noise, last theta).

    ``starts(n, generator)`` draws n starting states. Every update sees ``prompts`` of them, ``group`` rollouts each; a
    critic has one batch before the first update. With several learning rates the lanes are rates x seeds, and every
    rate meets the same states and noise. J is ``value`` of theta where it is given, else the mean return of 128
    rollouts, the same in all evaluations.
    """
    method = method if isinstance(method, Method) else Method(method)
    rates = [learning_rate] if isinstance(learning_rate, float) else list(learning_rate)
    copies = len(rates)
    rate = torch.tensor(rates, dtype=torch.float64).repeat_interleave(seeds).unsqueeze(1)
    test_s0 = starts(128, generator)
    test_noise = torch.randn(128, horizon, mdp.action_dim, generator=generator, dtype=torch.float64)

    def mean_return(theta: Tensor) -> Tensor:
        return sampled_return(mdp, test_s0, test_noise, gamma=gamma, theta=theta).mean()

    J = vmap(value or mean_return)

    def batch() -> tuple[Tensor, Tensor]:
        s0 = starts(seeds * prompts, generator).unflatten(0, (seeds, prompts)).repeat_interleave(group, 1)
        shape = (seeds, prompts * group, horizon, mdp.action_dim)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return s0.repeat(copies, 1, 1), noise.repeat(copies, 1, 1, 1)

    # Adam's step is its rate times a direction that does not know the rate: one optimiser serves all of them.
    direction = torch.zeros(copies * seeds, len(mdp.theta), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([direction], lr=1.0, maximize=True)
    seen, curve, last = [], [], batch()
    for update in range(updates + 1):
        theta = mdp.theta + rate * direction.detach()
        if update % evaluate_every == 0:
            seen.append(float(update * prompts * group))
            curve.append(J(theta))
        if update < updates:
            s0, noise = batch()
            critic = (vmap(method.fit)(theta, *last),) if method.fit else ()
            direction.grad = gradients_per_seed(method.objective, theta, s0, noise, *critic)
            optimiser.step()
            last = s0, noise
    return torch.tensor(seen, dtype=torch.float64), torch.stack(curve), theta


def tuned_rate(
    mdp: DifferentiableMDP,
    method: Method | Objective,
    *,
    learning_rates: Sequence[float],
    seeds: int,
    seed: int,
    extensions: int = 3,
    **options: Any,
) -> tuple[float, dict[float, float]]:
    """The rate whose J at the *end*, averaged over ``seeds``, is best, and what every rate reached.

    Where the best is the smallest or the largest the grid grows on that side by its own factor. Raises ``ValueError``
    for fewer than three rates, and when the best still lies at an edge after ``extensions`` such steps.
    """
    grid = sorted(learning_rates)
    if len(grid) < 3:
        raise ValueError(f"learning_rates: expected at least three, got {learning_rates!r}")
    ends: dict[float, float] = {}
    for _ in range(extensions + 1):
        new = [rate for rate in grid if rate not in ends]
        generator = torch.Generator().manual_seed(seed)
        _, J, _ = train(mdp, method, learning_rate=new, seeds=seeds, generator=generator, **options)
        reached = J[-1].unflatten(0, (len(new), seeds)).mean(1).nan_to_num(nan=-torch.inf)
        ends.update(zip(new, reached.tolist(), strict=True))
        best = max(ends, key=lambda rate: ends[rate])
        if best not in (grid[0], grid[-1]):
            return best, dict(sorted(ends.items()))
        factor = grid[1] / grid[0]
        grid = [grid[0] / factor, *grid] if best == grid[0] else [*grid, grid[-1] * factor]
    raise ValueError(f"learning_rates: expected the best inside the grid, got {best} of {sorted(ends)}")


class Trained(NamedTuple):
    """A method at its tuned rate: what each rate tried reached at the end; J over training on the reported seeds."""

    rate: float
    tried: dict[float, float]
    seen: Float[Tensor, " evaluations"]
    J: Float[Tensor, "evaluations seeds"]
    theta: Float[Tensor, "seeds params"]

    @property
    def gain(self) -> Float[Tensor, " seeds"]:
        """J at the end minus J at the start."""
        return self.J[-1] - self.J[0]


def train_at(
    mdp: DifferentiableMDP,
    method: Method | Objective,
    *,
    learning_rate: float,
    seed: int,
    tried: dict[float, float] | None = None,
    **options: Any,
) -> Trained:
    """:func:`train` at one rate on the stream ``seed``.

    All methods called with one ``seed`` meet the same starting states, noise and evaluation, so that they are paired.
    """
    generator = torch.Generator().manual_seed(seed)
    return Trained(
        learning_rate,
        tried or {},
        *train(mdp, method, learning_rate=learning_rate, generator=generator, **options),
    )


def tune_and_train(
    mdp: DifferentiableMDP,
    method: Method | Objective,
    *,
    learning_rates: Sequence[float],
    tuning_seeds: int,
    seeds: int,
    seed: int,
    **options: Any,
) -> Trained:
    """:func:`tuned_rate` on ``tuning_seeds`` seeds of one stream, then :func:`train_at` on ``seeds`` of another."""
    rate, tried = tuned_rate(
        mdp, method, learning_rates=learning_rates, seeds=tuning_seeds, seed=seed + 10_000, **options
    )
    return train_at(mdp, method, learning_rate=rate, seed=seed, seeds=seeds, tried=tried, **options)
