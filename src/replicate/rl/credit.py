r"""Which rewards a token is credited with: its advantage, from a completion's rewards token by token.

============  ==============================================================================================
``credit``    advantage of token t in completion i
============  ==============================================================================================
"outcome"     that of the whole completion, the same for every token: GRPO's A_i of R_i = sum_t r_it
"to_go"       that of what is still to come, G_it = sum_{k >= t} r_ik, compared with the group's at the same t
"gae"         the critic's: sum_k (gae_weight)^k delta_{i,t+k}, delta_t = r_t + v_{t+1} - v_t, v after the end 0
============  ==============================================================================================

``baseline`` and ``scale`` (:mod:`replicate.rl.grpo`) say how a group is compared. A critic is a baseline of its own:
with it ``baseline`` says nothing, and ``scale="std"`` takes the mean off a lane's advantages, over all tokens of its
batch, and divides by their standard deviation, as implementations of PPO do; "none" does neither. There is no discount.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.rl.batch import Actor, Asked, Lesson
from replicate.rl.grpo import group_advantages
from replicate.settings.grpo import GRPO

PerToken = Float[Tensor, "lanes prompts group T"]


# What implementations of PPO add to the standard deviation.
_EPS = 1e-8


class Assigned(NamedTuple):
    """The advantage of every token, and what the critic, if there is one, learns from the same rewards."""

    advantages: Float[Tensor, "lanes completions T"]
    lesson: Lesson | None = None


def assign(
    actor: Actor,
    asked: Asked,
    tokens: Int[Tensor, "lanes prompts group T"] | None,
    rewards: PerToken,
    config: GRPO,
) -> Assigned:
    """The advantage of every token of every completion under ``config.credit``.

    The critic's targets are A_t + v_t before any scaling. Raises ``ValueError`` for "gae" without a critic or without
    tokens that it could read.
    """
    scaled = rewards * config.reward_scale
    if config.credit == "outcome":
        whole = compared(scaled.sum(-1, keepdim=True), config)
        return Assigned(whole.expand(-1, -1, -1, rewards.shape[3]).flatten(1, 2))
    if config.credit == "to_go":
        return Assigned(compared(to_go(scaled), config).flatten(1, 2))
    if actor.critic is None or tokens is None:
        lacking = "critic" if actor.critic is None else "sampled tokens"
        raise ValueError(f"credit: expected a critic and sampled tokens for it with 'gae', got no {lacking}")
    values = actor.critic.values(asked.tokens, tokens)
    found = gae(scaled, values.detach(), config.gae_weight)
    lesson = Lesson(asked.tokens, tokens, values, found + values.detach())
    found = found.flatten(1, 2)
    return Assigned(whitened(found) if config.scale == "std" else found, lesson)


def gae(rewards: PerToken, values: PerToken, weight: float) -> PerToken:
    """A_t = sum_k weight^k delta_{t+k} with delta_t = r_t + v_{t+1} - v_t, and nothing to come after the last token."""
    ahead = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    deltas = rewards + ahead - values
    found, running = [], torch.zeros_like(deltas[..., 0])
    for delta in deltas.unbind(-1)[::-1]:
        running = delta + weight * running
        found.append(running)
    return torch.stack(found[::-1], dim=-1)


def whitened(advantages: Float[Tensor, "lanes completions T"]) -> Float[Tensor, "lanes completions T"]:
    """Each lane's advantages less their mean, over their sample standard deviation; zeros where all are equal."""
    flat = advantages.flatten(1)
    if flat.shape[1] < 2:
        raise ValueError(f"scale: expected at least 2 tokens for a standard deviation, got {flat.shape[1]}")
    # Measured from the first, as in group_advantages: equal ones are zeros before any rounding can happen.
    shifted = flat - flat[:, :1]
    centred = shifted - shifted.mean(1, keepdim=True)
    return (centred / (shifted.std(1, keepdim=True) + _EPS)).view_as(advantages)


def compared(returns: PerToken, config: GRPO) -> PerToken:
    """Each token's return against its group's at the same token."""
    groups = returns.transpose(2, 3).flatten(0, 2)
    found = group_advantages(groups, baseline=config.baseline, scale=config.scale)
    return found.view_as(returns.transpose(2, 3)).transpose(2, 3)


def to_go(rewards: Float[Tensor, "... T"]) -> Float[Tensor, "... T"]:
    """G_t = sum of r_k from k = t on."""
    return rewards.flip(-1).cumsum(-1).flip(-1)
