"""Every member of the policy-gradient family on the same sampled groups, under the names of ``exact_noise``."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.theory import adjoint
from replicate.theory import policy_gradients as pg
from replicate.theory.exact_noise import Critic, Start, exact_values, family_moments
from replicate.theory.rollout import LQG, DifferentiableMDP, objective_gradient


def estimates(
    mdp: DifferentiableMDP,
    groups: pg.Groups,
    *,
    gamma: float | int,
    critics: Mapping[str, tuple[Critic, float | int]],
) -> dict[str, Float[Tensor, "prompts params"]]:
    """One estimate a group for each member; ``critics`` maps names to (critic, GAE's decay)."""
    leave_one_out = pg.outcome_weights(groups, baseline="leave_one_out")
    weights = {
        "REINFORCE": pg.outcome_weights(groups),
        "RLOO": leave_one_out,
        "Dr. GRPO": pg.outcome_weights(groups, baseline="mean"),
        "GRPO": pg.outcome_weights(groups, baseline="mean", scale="std"),
        "reward to go": pg.reward_to_go_weights(groups, gamma=gamma),
    }
    for name, (critic, gae_lambda) in critics.items():
        weights[name] = pg.critic_weights(groups, critic(groups.states), gamma=gamma, lam=gae_lambda)
    found = {name: pg.group_gradients(groups, w) for name, w in weights.items()}
    group, noise = groups.noise.shape[1], groups.noise.flatten(0, 1)
    through_time = adjoint.policy_gradient(mdp, groups.s0.repeat_interleave(group, 0), noise, gamma=gamma)
    return found | {"BPTT": through_time.unflatten(0, (-1, group)).mean(1)}


def fitted_critic(groups: pg.Groups, *, degree: int) -> Critic:
    """The least-squares critic of ``groups``, linear (``degree`` 1) or quadratic (2) in the state; 0 at t = T."""
    weights = pg.fit_critic(groups, degree=degree)

    def values(states: Float[Tensor, "*batch times state"]) -> Float[Tensor, "*batch times"]:
        V = (pg.critic_features(states[..., :-1, :], degree=degree) * weights).sum(-1)
        return torch.cat([V, torch.zeros_like(V[..., :1])], -1)

    return values


def plant(memory: float, *, noise_std: float, gain: float = -0.4) -> LQG:
    """One state that forgets: s' = memory s + noise_std xi under the policy a = gain s + noise_std xi.

    With ``memory`` 0.5 a push is halved every step, with 1 it stays for good. Rewards are -(s^2 + a^2 / 10).
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    return LQG((memory - gain) * one, one, one, 0.1 * one, gain * one, noise_std=noise_std)


class Spread(NamedTuple):
    """Mean squared distance of samples from their true mean, and its standard error."""

    mean: float
    error: float

    def z(self, expected: float | Tensor) -> float:
        """How many standard errors it lies from ``expected``, without sign."""
        return abs(self.mean - float(expected)) / self.error


def spread(samples: Float[Tensor, "groups params"], truth: Float[Tensor, " params"]) -> Spread:
    """Of estimates with the mean ``truth``: their variance summed over parameters, from samples."""
    distance = (samples - truth).square().sum(-1)
    return Spread(distance.mean().item(), distance.std().item() / len(samples) ** 0.5)


def leave_one_out(
    mdp: DifferentiableMDP,
    s0: Float[Tensor, "prompts state"],
    *,
    group: int,
    horizon: int,
    gamma: float | int,
    generator: torch.Generator,
) -> Float[Tensor, "prompts params"]:
    """RLOO's estimate from one fresh group of each start."""
    groups = pg.sample_groups(mdp, s0, group=group, horizon=horizon, gamma=gamma, generator=generator)
    return pg.group_gradients(groups, pg.outcome_weights(groups, baseline="leave_one_out"))


def against_horizon(
    mdp: LQG,
    s0: Start,
    horizon: int,
    *,
    group: int,
    groups: int,
    blocks: int,
    generator: torch.Generator,
) -> dict[str, tuple[float, Float[Tensor, " blocks"]]]:
    """Squared noise of one rollout, undiscounted: method -> (in closed form, sampled in blocks).

    The methods are RLOO, the exact critic as a mere baseline (GAE's decay 1) and with decay 0.9, and BPTT.
    """
    of = {"horizon": horizon, "gamma": 1}
    V = exact_values(mdp, **of)
    critics = {"critic, baseline only": (V, 1), "exact critic": (V, 0.9)}
    moments = family_moments(mdp, s0, group=group, critics=critics, **of)
    sampled = pg.sample_groups(mdp, s0.expand(groups, -1), group=group, generator=generator, **of)
    found, truth = (
        estimates(mdp, sampled, critics=critics, gamma=1),
        objective_gradient(mdp, s0[None], **of)[0],
    )
    return {
        name: (
            moments[name].squared_noise(group),
            squared_noise(found[name], truth, group=group, blocks=blocks),
        )
        for name in ("RLOO", *critics, "BPTT")
    }


def squared_noise(
    samples: Float[Tensor, "groups params"], truth: Float[Tensor, " params"], *, group: int, blocks: int
) -> Float[Tensor, " blocks"]:
    """Mean squared distance from ``truth`` over its square, times ``group``, in each of ``blocks`` of the samples.

    For an unbiased estimate it is the number of rollouts at which signal and noise are equal. Raises ``ValueError``
    where the samples do not divide into blocks.
    """
    if len(samples) % blocks:
        raise ValueError(f"samples: expected a multiple of {blocks} rows, got {len(samples)}")
    distance = (samples - truth).square().sum(-1) / truth.square().sum()
    return group * distance.unflatten(0, (blocks, -1)).mean(1)
