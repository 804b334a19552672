"""Objective (1) on sampled tokens: GRPO and its family; with the critic's advantages, PPO."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.rl import credit
from replicate.rl.batch import Actor, Asked, Batch, Completions
from replicate.rl.grpo import lane_losses
from replicate.rl.rollout import log_probs_of, sample
from replicate.settings.grpo import GRPO


def draw(actor: Actor, asked: Asked, config: GRPO, generators: Sequence[torch.Generator]) -> Batch:
    """Completions drawn token by token, rated, and compared within their groups."""
    shape = (asked.tokens.shape[1], config.group_size, asked.horizon)
    uniforms = torch.stack([torch.rand(shape, generator=g, device=g.device) for g in generators])
    rollout = sample(actor.policy, asked.tokens, uniforms, vocab=asked.vocab)
    rewards = asked.rated(rollout.tokens)
    ref = None
    if config.kl_coef != 0:
        with torch.no_grad():
            ref = log_probs_of(actor.reference, asked.tokens, rollout.tokens, vocab=asked.vocab).flatten(1, 2)
    logp = rollout.logp.flatten(1, 2)
    given = credit.assign(actor, asked, rollout.tokens, rewards, config)
    return Batch(
        asked,
        rewards.sum(-1).flatten(1),
        rollout.entropy,
        logp,
        rollout.tokens,
        given.advantages,
        logp.detach(),
        ref,
        given.lesson,
    )


def again(actor: Actor, batch: Batch, config: GRPO) -> Completions:
    """log pi of the batch's tokens."""
    asked = batch.asked
    return log_probs_of(actor.policy, asked.tokens, batch.actions, vocab=asked.vocab).flatten(1, 2)


def losses(signal: Completions, batch: Batch, config: GRPO) -> Float[Tensor, " lanes"]:
    """Minus objective (1), lane by lane."""
    return lane_losses(signal, batch, config)
