"""The policy-gradient family on a linear task without sampling: weights and scores of one rollout as quadratic forms.

Every estimator but BPTT is sum_t w_t S_t with the scores S_t of the actions and weights w_t of its own;
:mod:`replicate.theory.gaussian_forms` has its mean and variance. The forms are those of the noise of one rollout,
flattened to [T x action], from the start s0. Without s0 the start is standard normal, and its state_dim numbers come
before the noise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory.gaussian_forms import Forms, forms_of, group_variance, weighted_scores
from replicate.theory.rollout import LQG, Rollout, returns_to_go, rollout, sampled_return

Start = Float[Tensor, " state"]
Critic = Callable[[Float[Tensor, "*batch times state"]], Float[Tensor, "*batch times"]]
"""(states s_0..s_T of rollouts) -> V_t(s_t) at t = 0..T; the last stands for the terminal reward."""


class Weighted(NamedTuple):
    """An estimator sum_t w_t S_t of one rollout: forms [steps] and [steps, params]."""

    weights: Forms
    scores: Forms

    def moments(self) -> tuple[Float[Tensor, " params"], Float[Tensor, " params"]]:
        """Exact mean and variance of one rollout's estimate."""
        return weighted_scores(self.weights, self.scores)


class Moments(NamedTuple):
    """Mean of an estimate and its variance summed over parameters."""

    mean: Float[Tensor, " params"]
    variance: Float[Tensor, ""]

    def squared_noise(self, rollouts: int) -> float:
        """Variance over squared norm of the mean, times ``rollouts``: how many make signal and noise equal."""
        return (rollouts * self.variance / self.mean.square().sum()).item()


def exact_values(mdp: LQG, *, horizon: int, gamma: float | int) -> Critic:
    """The critic that knows V_t in closed form, and at t = T the terminal reward."""
    P = mdp.cost_matrices(horizon=horizon, gamma=gamma)[:-1]
    zero = torch.zeros(mdp.state_dim, dtype=torch.float64)
    c = torch.stack([mdp.value(zero, t, horizon=horizon, gamma=gamma) for t in range(horizon)])

    def values(states: Float[Tensor, "*batch times state"]) -> Float[Tensor, "*batch times"]:
        s = states[..., :-1, :]
        V = c - torch.einsum("...ti,tij,...tj->...t", s, P, s)
        return torch.cat([V, mdp.terminal_reward(states[..., -1:, :])], -1)

    return values


def outcome(mdp: LQG, s0: Start | None, *, horizon: int, gamma: float | int) -> Weighted:
    """REINFORCE: the whole return on the sum of all scores. RLOO adds the group, see ``group_variance``."""

    def R(x: Tensor) -> Tensor:
        path = _rollout(mdp, s0, x, horizon)
        return returns_to_go(path.rewards, path.terminal, gamma=gamma)[:, 0]

    whole = _scores(mdp, s0, horizon).sum(0)
    return Weighted(forms_of(R, _size(mdp, s0, horizon)), Forms(*(part[None] for part in whole)))


def reward_to_go(mdp: LQG, s0: Start | None, *, horizon: int, gamma: float | int) -> Weighted:
    """gamma^t G_t on the score of step t: what comes before an action cannot speak of it."""

    def w(x: Tensor) -> Tensor:
        path = _rollout(mdp, s0, x, horizon)
        return _discounts(horizon, gamma) * returns_to_go(path.rewards, path.terminal, gamma=gamma)[0, :-1]

    return Weighted(forms_of(w, _size(mdp, s0, horizon)), _scores(mdp, s0, horizon))


def generalised_advantage(
    mdp: LQG, s0: Start | None, critic: Critic, *, horizon: int, gamma: float | int, gae_lambda: float | int
) -> Weighted:
    """gamma^t sum_l (gamma gae_lambda)^l delta_{t+l} on the score of step t, delta_t = r_t + gamma V_{t+1} - V_t.

    ``gae_lambda`` is GAE's decay (Schulman et al. 2016): with 1 the critic is only a baseline, with 0 it stands for
    all that comes after one reward.
    """

    def w(x: Tensor) -> Tensor:
        path = _rollout(mdp, s0, x, horizon)
        V = critic(path.states[0])
        delta = path.rewards[0] + gamma * V[1:] - V[:-1]
        A = returns_to_go(delta[None], torch.zeros_like(delta[:1]), gamma=gamma * gae_lambda)[0, :-1]
        return _discounts(horizon, gamma) * A

    return Weighted(forms_of(w, _size(mdp, s0, horizon)), _scores(mdp, s0, horizon))


def through_time(mdp: LQG, s0: Start, *, horizon: int, gamma: float | int) -> Forms:
    """BPTT (7): the gradient of the sampled return, a form for each parameter."""

    def gradient(x: Tensor) -> Tensor:
        noise = x.view(1, horizon, -1)
        return torch.func.grad(
            lambda theta: sampled_return(mdp, s0[None], noise, gamma=gamma, theta=theta)[0]
        )(mdp.theta)

    return forms_of(gradient, _size(mdp, s0, horizon))


def family_moments(
    mdp: LQG,
    s0: Start,
    *,
    group: int,
    horizon: int,
    gamma: float | int,
    critics: Mapping[str, tuple[Critic, float | int]],
) -> dict[str, Moments]:
    """Mean and variance of one group's estimate for every member whose expectation is that of a polynomial.

    ``critics`` maps the names under which critics are listed to (critic, GAE's decay). GRPO itself divides by a
    standard deviation and is not among them.
    """
    of = {"horizon": horizon, "gamma": gamma}
    whole, to_go = outcome(mdp, s0, **of), reward_to_go(mdp, s0, **of)
    mean, variance = whole.moments()
    rloo = sum(group_variance(*whole, group=group))
    shrunk = 1 - 1 / group
    found = {
        "REINFORCE": Moments(mean, variance.sum() / group),
        "RLOO": Moments(mean, rloo),
        "Dr. GRPO": Moments(shrunk * mean, shrunk**2 * rloo),
        "reward to go": Moments(to_go.moments()[0], sum(group_variance(*to_go, group=group))),
    }
    for name, (critic, gae_lambda) in critics.items():
        mean, variance = generalised_advantage(mdp, s0, critic, gae_lambda=gae_lambda, **of).moments()
        found[name] = Moments(mean, variance.sum() / group)
    bptt = through_time(mdp, s0, **of)
    return found | {"BPTT": Moments(bptt.mean, bptt.variance.sum() / group)}


def update_moments(by_prompt: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Those of an update that averages one independent group of each prompt, from :func:`family_moments` of each."""
    prompts = len(by_prompt)
    return {
        name: Moments(
            sum(of[name].mean for of in by_prompt) / prompts,
            sum(of[name].variance for of in by_prompt) / prompts**2,
        )
        for name in by_prompt[0]
    }


def _rollout(mdp: LQG, s0: Start | None, x: Tensor, horizon: int) -> Rollout:
    if s0 is None:
        s0, x = x[: mdp.state_dim], x[mdp.state_dim :]
    return rollout(mdp, s0[None], x.view(1, horizon, -1))


def _size(mdp: LQG, s0: Start | None, horizon: int) -> int:
    return horizon * mdp.action_dim + (mdp.state_dim if s0 is None else 0)


def _scores(mdp: LQG, s0: Start | None, horizon: int) -> Forms:
    """dlog pi(a_t given s_t)/dtheta, [T, params]: xi_t / noise_std times what theta multiplies."""
    jacobian = torch.func.vmap(torch.func.jacfwd(mdp.mean, 1), (0, None))

    def scores(x: Tensor) -> Tensor:
        states = _rollout(mdp, s0, x, horizon).states[0, :-1]
        noise = x[len(x) - horizon * mdp.action_dim :].view(horizon, -1)
        return torch.einsum("tap,ta->tp", jacobian(states, mdp.theta), noise / mdp.noise_std)

    return forms_of(scores, _size(mdp, s0, horizon))


def _discounts(horizon: int, gamma: float | int) -> Float[Tensor, " horizon"]:
    return gamma ** torch.arange(horizon, dtype=torch.float64)
