r"""Objective (1) for a policy of soft tokens, in the form of SofT-GRPO (Zheng et al. 2025, arXiv 2511.06411).

The action at step t is the vector of perturbed log-probabilities of the tokens i that are kept,

    g'_i = log pi_i + Gumbel noise,    next input sum_i softmax(g' / temperature)_i e(i),    o_t = argmax_i g'_i

where pi is the sampling policy renormalised on the kept tokens: of the :data:`TOP_K` likeliest the fewest that hold
:data:`TOP_P` of their mass. Under other weights its log-density, with their own pi renormalised on the same tokens, is

    log p(g' | pi) = sum_i [ -(g'_i - log pi_i) - exp(-(g'_i - log pi_i)) ]

The reward is read off the tokens o_t, each a sample of pi where the noise is Gumbel's. The soft inputs are functions of
actions and stay what they were when the weights move: the density of an action is found behind the same inputs, and
that ratio is the correction for stale samples. Which tokens are kept is part of how one samples; its change with the
weights is neglected. Zheng et al. have temperature 0.1, groups of 8 and a KL coefficient of 0.001.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replicate.models.logits import entropy
from replicate.rl import credit
from replicate.rl.batch import Actor, Asked, Batch, Completions
from replicate.rl.grpo import lane_losses
from replicate.rl.policies import Cache
from replicate.rl.relaxed import Choose, gumbels, walk
from replicate.rl.rollout import distributions_behind, distributions_of, first_of
from replicate.settings.grpo import GRPO

TOP_K = 5
TOP_P = 0.95
"""What is kept of a policy; both from Zheng et al. (2025)."""


@dataclass(frozen=True)
class Actions:
    """The ids of the kept tokens, g' on them (minus infinity where fewer are kept), and the soft tokens they make."""

    kept: Int[Tensor, "lanes prompts group T kept"]
    perturbed: Float[Tensor, "lanes prompts group T kept"]
    soft: Float[Tensor, "lanes prompts group T vocab"]


def draw(actor: Actor, asked: Asked, config: GRPO, generators: Sequence[torch.Generator]) -> Batch:
    """Soft rollouts in groups, rated by their hardened tokens and compared within their groups.

    A critic reads the hardened tokens, not the soft ones that the policy read: it knows less of the state.
    """
    noise = gumbels(
        generators, asked.tokens.shape[1], config.group_size, asked.horizon, min(TOP_K, asked.vocab)
    )
    cache: Cache | None = [] if asked.horizon > 1 else None
    first, length = first_of(actor.policy, asked.tokens, cache, vocab=asked.vocab), asked.tokens.shape[2]
    with torch.no_grad():
        sizes = {"group": config.group_size, "horizon": asked.horizon, "length": length}
        parts = walk(actor.policy, first.detach(), cache, _chooser(noise, config.temperature), **sizes)
    soft, tokens, spread, kept, perturbed = parts
    actions, rewards = Actions(kept, perturbed, soft), asked.rated(tokens)
    ref = None
    if config.kl_coef != 0:
        with torch.no_grad():
            ref = _scored(distributions_of(actor.reference, asked.tokens, soft, vocab=asked.vocab), actions)
    logp = _scored(distributions_behind(actor.policy, first, soft, cache, length=length), actions)
    given = credit.assign(actor, asked, tokens, rewards, config)
    return Batch(
        asked,
        rewards.sum(-1).flatten(1),
        spread,
        logp,
        actions,
        given.advantages,
        logp.detach(),
        ref,
        given.lesson,
    )


def again(actor: Actor, batch: Batch, config: GRPO) -> Completions:
    """The log-density of the batch's actions, behind the same soft inputs."""
    asked, actions = batch.asked, batch.actions
    return _scored(distributions_of(actor.policy, asked.tokens, actions.soft, vocab=asked.vocab), actions)


def losses(signal: Completions, batch: Batch, config: GRPO) -> Float[Tensor, " lanes"]:
    """Minus objective (1), lane by lane."""
    return lane_losses(signal, batch, config)


def log_density(
    log_probs: Float[Tensor, "*steps vocab"],
    kept: Int[Tensor, "*steps kept"],
    perturbed: Float[Tensor, "*steps kept"],
) -> Float[Tensor, "*steps"]:
    """log p(g' | pi): one Gumbel density for each kept token, at its log-probability among them."""
    outside = perturbed.isneginf()
    location = _located(log_probs, kept, outside).masked_fill(outside, 0.0)
    off = perturbed.masked_fill(outside, 0.0) - location
    return (-off - (-off).exp()).masked_fill(outside, 0.0).sum(-1)


def nucleus(
    log_probs: Float[Tensor, "*steps vocab"],
) -> tuple[Int[Tensor, "*steps kept"], Bool[Tensor, "*steps kept"]]:
    """The ids of the :data:`TOP_K` likeliest tokens, likeliest first, and which of them are left out: those before
    which :data:`TOP_P` of their mass is reached."""
    top, kept = log_probs.topk(min(TOP_K, log_probs.shape[-1]), -1)
    mass = top.softmax(-1)
    return kept, mass.cumsum(-1) - mass >= TOP_P


def _located(log_probs: Tensor, kept: Tensor, outside: Tensor) -> Float[Tensor, "*steps kept"]:
    """log pi renormalised on the kept tokens; minus infinity outside."""
    return log_probs.gather(-1, kept).masked_fill(outside, float("-inf")).log_softmax(-1)


def _chooser(noise: Float[Tensor, "lanes prompts group T kept"], temperature: float) -> Choose:
    """The policy's act for :func:`~replicate.rl.relaxed.walk`: soft token, token, entropy, and the action's parts."""

    def choose(t: int, log_probs: Tensor) -> tuple[Tensor, ...]:
        kept, outside = nucleus(log_probs)
        perturbed = _located(log_probs, kept, outside) + noise[:, :, :, t].to(log_probs.dtype)
        kept, spread = kept.expand_as(perturbed), entropy(log_probs).expand(perturbed.shape[:3])
        weights = (perturbed / temperature).softmax(-1)
        soft = weights.new_zeros(*weights.shape[:3], log_probs.shape[3]).scatter(-1, kept, weights)
        tokens = kept.gather(-1, perturbed.argmax(-1, keepdim=True))[..., 0]
        return soft, tokens, spread, kept, perturbed

    return choose


def _scored(log_probs: Float[Tensor, "lanes prompts group T vocab"], actions: Actions) -> Completions:
    return log_density(log_probs, actions.kept, actions.perturbed).flatten(1, 2)
