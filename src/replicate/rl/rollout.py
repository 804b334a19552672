"""Sampling groups of completions, sharing each prompt's forward pass, with the graph for the gradient kept.

All randomness is exogenous (Def. 1): a rollout is a function of the weights and of uniform numbers that are drawn
outside and passed in. A token is the inverse of the policy's cumulated probabilities at its uniform number.

On the policy's own samples the pass that samples is also the pass that is differentiated: log-probabilities of the
sampled tokens come with their graph, and no second forward pass is needed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.models.logits import entropy, log_policy
from replicate.rl.policies import Cache, Policy, repeat_cache


@dataclass(frozen=True)
class Rollout:
    """A group of completions per prompt.

    ``tokens`` [lanes, prompts, group, T]; ``logp`` the log-probabilities of those tokens, same shape, with graph;
    ``entropy`` [lanes, prompts, group, T] of the distributions they were drawn from, in nats, without graph.
    """

    tokens: Int[Tensor, "lanes prompts group T"]
    logp: Float[Tensor, "lanes prompts group T"]
    entropy: Float[Tensor, "lanes prompts group T"]


def sample(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    uniforms: Float[Tensor, "lanes prompts group T"],
    *,
    vocab: int,
) -> Rollout:
    """Draws one completion of T tokens for each uniform row; ``vocab`` tokens are in use.

    One pass over the prompts serves the whole group, then T - 1 steps over one new token each.
    """
    group, horizon = uniforms.shape[2:]
    if group < 1 or horizon < 1:
        raise ValueError(
            f"uniforms: expected a group and a horizon of at least 1, got {list(uniforms.shape)}"
        )
    cache: Cache | None = [] if horizon > 1 else None
    log_probs = _next(policy, prompts, cache, vocab)[:, :, None]  # the group's first tokens share it
    steps = []
    for t in range(horizon):
        steps.append(_draw(log_probs, uniforms[..., t]))
        if t + 1 < horizon:
            if t == 0:
                cache = repeat_cache(cache, group)
            newest = steps[-1].tokens.flatten(1, 2)
            log_probs = _next(policy, newest, cache, vocab).unflatten(1, (-1, group))
    return Rollout(*(torch.cat([getattr(s, f) for s in steps], -1) for f in ("tokens", "logp", "entropy")))


def log_probs_of(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    tokens: Int[Tensor, "lanes prompts group T"],
    *,
    vocab: int,
) -> Float[Tensor, "lanes prompts group T"]:
    """log pi(o_t | q, o_<t) of given completions: one pass over the prompts, one over the completions."""
    group, horizon = tokens.shape[2:]
    cache: Cache | None = [] if horizon > 1 else None
    first = _next(policy, prompts, cache, vocab)[:, :, None].expand(-1, -1, group, -1)
    logp = first.gather(-1, tokens[..., :1])
    if horizon == 1:
        return logp
    rest = policy.logits(tokens[..., :-1].flatten(1, 2), keep=horizon - 1, cache=repeat_cache(cache, group))
    rest = log_policy(rest, vocab=vocab).unflatten(1, (-1, group))
    return torch.cat([logp, rest.gather(-1, tokens[..., 1:, None]).squeeze(-1)], dim=-1)


def _next(policy: Policy, tokens, cache, vocab) -> Float[Tensor, "lanes rows vocab"]:
    if tokens.ndim == 2:
        tokens = tokens[..., None]
    logits = policy.logits(tokens, keep=1, cache=cache)[:, :, -1]
    return log_policy(logits, vocab=vocab)


def _draw(
    log_probs: Float[Tensor, "lanes prompts some vocab"], uniform: Float[Tensor, "lanes prompts group"]
):
    """Tokens [..., group, 1] by inversion; ``some`` is the group, or 1 where the group shares a distribution."""
    cumulated = log_probs.detach().double().exp().cumsum(-1)
    target = uniform.double()[..., None] * cumulated[..., -1:]
    if log_probs.shape[2] == 1:
        tokens = torch.searchsorted(cumulated[:, :, 0], target[..., 0], right=True)[..., None]
    else:
        tokens = torch.searchsorted(cumulated, target, right=True)
    tokens = tokens.clamp(max=log_probs.shape[-1] - 1)
    group = tokens.shape[2]
    if log_probs.shape[2] == 1:  # reads the shared row without copying it for every sample
        logp = log_probs[:, :, 0].gather(-1, tokens[..., 0])[..., None]
    else:
        logp = log_probs.gather(-1, tokens)
    spread = entropy(log_probs.detach())[..., None].expand(-1, -1, group, 1)
    return Rollout(tokens, logp, spread)
