r"""Which rewards a token is credited with: its advantage, from a completion's rewards token by token.

============  ==============================================================================================
``credit``    advantage of token t in completion i
============  ==============================================================================================
"outcome"     that of the whole completion, the same for every token: GRPO's A_i of R_i = sum_t r_it
"to_go"       that of what is still to come, G_it = sum_{k >= t} r_ik, compared with the group's at the same t
"gae"         the critic's: sum_k (gae_weight)^k delta_{i,t+k}, delta_t = r_t + v_{t+1} - v_t, v after the end 0
============  ==============================================================================================

``baseline`` and ``scale`` (:mod:`replicate.rl.grpo`) say how a group is compared; with a critic, which has a baseline
of its own, ``scale="std"`` divides a lane's advantages by their standard deviation after their mean is taken off.
"""

from jaxtyping import Float, Int
from torch import Tensor

from replicate.rl.batch import Actor, Asked
from replicate.rl.grpo import group_advantages
from replicate.settings.grpo import GRPO

PerToken = Float[Tensor, "lanes prompts group T"]


def advantages(
    actor: Actor,
    asked: Asked,
    tokens: Int[Tensor, "lanes prompts group T"] | None,
    rewards: PerToken,
    config: GRPO,
) -> Float[Tensor, "lanes completions T"]:
    """The advantage of every token of every completion under ``config.credit``."""
    scaled = rewards * config.reward_scale
    if config.credit == "outcome":
        return (
            compared(scaled.sum(-1, keepdim=True), config).expand(-1, -1, -1, rewards.shape[3]).flatten(1, 2)
        )
    return compared(to_go(scaled), config).flatten(1, 2)


def compared(returns: PerToken, config: GRPO) -> PerToken:
    """Each token's return against its group's at the same token."""
    groups = returns.transpose(2, 3).flatten(0, 2)
    found = group_advantages(groups, baseline=config.baseline, scale=config.scale)
    return found.view_as(returns.transpose(2, 3)).transpose(2, 3)


def to_go(rewards: Float[Tensor, "... T"]) -> Float[Tensor, "... T"]:
    """G_t = sum of r_k from k = t on."""
    return rewards.flip(-1).cumsum(-1).flip(-1)
