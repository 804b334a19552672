r"""Objective (1) for the shift policy of Lemma 1 on the logits: a graded reward of a continuous action.

The action is a = z + sigma xi, with z the logits at the answer position and xi standard normal, and the reward
R(a) = softmax(a)_y: between 0 and 1 where a sampled token's is one or the other. Its score is that of a Gaussian,
log pi(a | z) = -|a - z|^2 / (2 sigma^2) + const. One-token answers only.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.models.logits import entropy, log_policy
from replicate.rl import credit
from replicate.rl.batch import Actor, Asked, Batch, Completions
from replicate.rl.grpo import lane_losses
from replicate.rl.policies import Policy
from replicate.settings.grpo import GRPO


def draw(actor: Actor, asked: Asked, config: GRPO, generators: Sequence[torch.Generator]) -> Batch:
    """Noisy logits in groups, rated by their softmax at y; ``ValueError`` for longer answers or a critic."""
    if asked.horizon != 1 or config.credit == "gae":
        raise ValueError(
            f"method shift: expected answers of one token and no critic, got a horizon of {asked.horizon} and credit "
            f"{config.credit!r}"
        )
    logits = _logits(actor.policy, asked)
    shape = (asked.tokens.shape[1], config.group_size, asked.vocab)
    noise = torch.stack(
        [torch.randn(shape, generator=g, device=g.device, dtype=logits.dtype) for g in generators]
    )
    actions = logits.detach()[:, :, None] + config.sigma * noise
    right = asked.labels.view(*asked.tokens.shape[:2], 1, 1).expand(-1, -1, config.group_size, -1)
    rewards = log_policy(actions, vocab=asked.vocab).gather(-1, right).exp()
    ref = None
    if config.kl_coef != 0:
        with torch.no_grad():
            ref = _log_density(_logits(actor.reference, asked), actions, config)
    logp = _log_density(logits, actions, config)
    return Batch(
        asked,
        rewards.sum(-1).flatten(1),
        entropy(log_policy(logits.detach(), vocab=asked.vocab)),
        logp,
        actions,
        credit.assign(actor, asked, None, rewards, config).advantages,
        logp.detach(),
        ref,
    )


def again(actor: Actor, batch: Batch, config: GRPO) -> Completions:
    """The log-density of the batch's actions, up to a constant."""
    return _log_density(_logits(actor.policy, batch.asked), batch.actions, config)


def losses(signal: Completions, batch: Batch, config: GRPO) -> Float[Tensor, " lanes"]:
    """Minus objective (1), lane by lane."""
    return lane_losses(signal, batch, config)


def _logits(policy: Policy, asked: Asked) -> Float[Tensor, "lanes prompts vocab"]:
    return policy.logits(asked.tokens, keep=1)[:, :, -1, : asked.vocab]


def _log_density(logits, actions: Float[Tensor, "lanes prompts group vocab"], config: GRPO) -> Completions:
    off = (actions - logits[:, :, None]).square().sum(-1)
    return (-off / (2 * config.sigma**2)).flatten(1)[..., None]
