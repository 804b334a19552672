"""Sampling groups of completions, sharing each prompt's forward pass, with the graph for the gradient kept.

All randomness is exogenous (Def. 1): a rollout is a function of the weights and of uniform numbers that are drawn
outside and passed in. A token is the inverse of the policy's cumulated probabilities at its uniform number.

On the policy's own samples the pass over the prompts, from which the first tokens are drawn, is also the one that is
differentiated. Further tokens are drawn one by one without a graph, and then scored together: one pass over all of them
has a graph that is small beside that of as many passes over single tokens. All completions of a prompt stand side by
side behind it (:func:`~replicate.rl.policies.side_by_side`): its keys and values are copied for a large group only.

Answers of several tokens of a tiny OLMo-2 go through passes that are written out for all lanes at once
(:mod:`replicate.models.olmo2_lanes`), with the same steps in the same order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.models import olmo2_lanes
from replicate.models.logits import entropy, log_policy
from replicate.rl.policies import Behind, Cache, Policy, repeat_cache, side_by_side

WIDEST = 512
"""The most new tokens that stand side by side behind one copy of a prompt's keys and values."""

Given = Int[Tensor, "lanes prompts group T"] | Float[Tensor, "lanes prompts group T vocab"]
"""Completions: token ids or soft tokens, of which the last one of each is not read."""


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

    One pass over the prompts serves the whole group; then come T - 1 steps over one new token of each completion, and
    one pass that scores them all.
    """
    group, horizon = uniforms.shape[2:]
    if group < 1 or horizon < 1:
        raise ValueError(
            f"uniforms: expected a group and a horizon of at least 1, got {list(uniforms.shape)}"
        )
    if horizon > 1 and (net := _net(policy, vocab)):
        return _sampled(net, prompts, uniforms, vocab)
    cache: Cache | None = [] if horizon > 1 else None
    log_probs = first_of(policy, prompts, cache, vocab=vocab)
    steps = [_draw(log_probs, uniforms[..., 0])]
    if horizon == 1:
        return steps[0]
    steps += _continued(policy, steps[0], cache, uniforms[..., 1:], prompts.shape[2], vocab)
    tokens, spread = (
        torch.cat([getattr(step, name) for step in steps], -1) for name in ("tokens", "entropy")
    )
    rest = _scored(policy, tokens, cache, prompts.shape[2], vocab)
    return Rollout(tokens, torch.cat([steps[0].logp, rest], -1), spread)


def log_probs_of(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    tokens: Int[Tensor, "lanes prompts group T"],
    *,
    vocab: int,
) -> Float[Tensor, "lanes prompts group T"]:
    """log pi(o_t | q, o_<t) of given completions: one pass over the prompts, one over the completions."""
    group, horizon = tokens.shape[2:]
    if horizon > 1 and (net := _net(policy, vocab)):
        return _given(net, prompts, tokens, vocab)
    cache: Cache | None = [] if horizon > 1 else None
    first = (
        first_of(policy, prompts, cache, vocab=vocab).expand(-1, -1, group, -1).gather(-1, tokens[..., :1])
    )
    if horizon == 1:
        return first
    return torch.cat([first, _scored(policy, tokens, cache, prompts.shape[2], vocab)], dim=-1)


def distributions_of(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    tokens: Given,
    *,
    vocab: int,
) -> Float[Tensor, "lanes prompts group T vocab"]:
    """log pi(. | q, o_<t) at every token of given completions, over the whole vocabulary."""
    cache: Cache | None = [] if tokens.shape[3] > 1 else None
    first = first_of(policy, prompts, cache, vocab=vocab)
    return distributions_behind(policy, first, tokens, cache, length=prompts.shape[2])


def distributions_behind(
    policy: Policy,
    first: Float[Tensor, "lanes prompts 1 vocab"],
    tokens: Given,
    cache: Cache | None,
    *,
    length: int,
) -> Float[Tensor, "lanes prompts group T vocab"]:
    """:func:`distributions_of` from the ``first`` ones on, with the prompts of ``length`` tokens in ``cache``."""
    group, horizon = tokens.shape[2:4]
    shared = first.expand(-1, -1, group, -1)[:, :, :, None]
    if horizon == 1:
        return shared
    rest, _ = _behind(policy, tokens, cache, length)
    return torch.cat([shared, _by_completion(log_policy(rest, vocab=first.shape[3]), tokens.shape[1])], dim=3)


def outputs_of(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    tokens: Int[Tensor, "lanes prompts group T"],
) -> Float[Tensor, "lanes prompts group T rows"]:
    """What the head makes of (q, o_<t) before every token of given completions, all its rows as they are.

    One pass over the prompts and one over the completions. Before the first token the group shares one entry.
    """
    group, horizon = tokens.shape[2:]
    cache: Cache | None = [] if horizon > 1 else None
    first = policy.logits(prompts, keep=1, cache=cache)[:, :, None].expand(-1, -1, group, -1, -1)
    if horizon == 1:
        return first
    rest, _ = _behind(policy, tokens, cache, prompts.shape[2])
    return torch.cat([first, _by_completion(rest, tokens.shape[1])], dim=3)


def first_of(
    policy: Policy, prompts: Int[Tensor, "lanes prompts length"], cache: Cache | None, *, vocab: int
) -> Float[Tensor, "lanes prompts 1 vocab"]:
    """log pi(. | q) of the first token, which a prompt's whole group shares; a ``cache`` then holds the prompts."""
    return log_policy(policy.logits(prompts, keep=1, cache=cache)[:, :, -1], vocab=vocab)[:, :, None]


@torch.no_grad()
def _continued(
    policy: Policy, newest: Rollout, cache: Cache, uniforms, length: int, vocab: int
) -> list[Rollout]:
    """The draws after the first; ``cache``, which holds the prompts, stays as it is."""
    group, more = uniforms.shape[2:]
    members = members_of(group, more)
    grown = repeat_cache(cache, group // members)
    all_steps = side_by_side(length, members, more, device=uniforms.device)
    drawn = []
    for t in range(more):
        now = slice(t * members, (t + 1) * members)
        behind = Behind(all_steps.positions[now], all_steps.sees[now, : length + (t + 1) * members])
        tokens = newest.tokens[..., 0].unflatten(2, (-1, members)).flatten(1, 2)
        logits = policy.logits(tokens, keep=members, cache=grown, behind=behind)
        logits = logits.unflatten(1, (uniforms.shape[1], -1)).flatten(2, 3)
        newest = _draw(log_policy(logits, vocab=vocab), uniforms[..., t])
        drawn.append(newest)
    return drawn


def _scored(
    policy: Policy, tokens: Int[Tensor, "lanes prompts group T"], cache: Cache, length: int, vocab: int
) -> Float[Tensor, "lanes prompts group T-1"]:
    """log pi of all tokens but the first, in one pass behind the prompts that ``cache`` holds."""
    logits, rows = _behind(policy, tokens, cache, length)
    logp = log_policy(logits, vocab=vocab).gather(-1, rows[:, :, 1:, :, None])
    return _by_completion(logp, tokens.shape[1])[..., 0]


def _behind(
    policy: Policy, tokens: Given, cache: Cache, length: int
) -> tuple[Float[Tensor, "lanes rows more members some"], Tensor]:
    """The logits of all tokens but the first, completions side by side in rows, and the tokens in that order."""
    group, more = tokens.shape[2], tokens.shape[3] - 1
    members = members_of(group, more)
    rows = tokens.unflatten(2, (-1, members)).flatten(1, 2).transpose(2, 3)  # [lanes, rows, T, members, ...]
    behind = side_by_side(length, members, more, device=tokens.device)
    given, copies = rows[:, :, :-1].flatten(2, 3), repeat_cache(cache, group // members)
    logits = policy.logits(given, keep=given.shape[2], cache=copies, behind=behind)
    return logits.unflatten(2, (more, members)), rows


def _by_completion(
    found: Float[Tensor, "lanes rows more members some"], prompts: int
) -> Float[Tensor, "lanes prompts group more some"]:
    """The same with one row of its own for every completion."""
    return found.transpose(2, 3).unflatten(1, (prompts, -1)).flatten(2, 3)


def members_of(group: int, steps: int) -> int:
    """How many completions stand side by side in a row: the largest divisor of ``group`` that makes no row wider than
    :data:`WIDEST` tokens, since attention in it grows with the square of its width."""
    return max(m for m in range(1, group + 1) if group % m == 0 and (m == 1 or m * steps <= WIDEST))


def _draw(
    log_probs: Float[Tensor, "lanes prompts some vocab"], uniform: Float[Tensor, "lanes prompts group"]
):
    """Tokens [..., group, 1] by inversion; ``some`` is the group, or 1 where the group shares a distribution."""
    probs = log_probs.detach().double().exp()
    if log_probs.shape[2] == 1:  # reads the shared row without copying it for every sample
        tokens = _inverted(probs[:, :, 0], uniform)[..., None]
        logp = log_probs[:, :, 0].gather(-1, tokens[..., 0])[..., None]
    else:
        tokens = _inverted(probs, uniform[..., None])
        logp = log_probs.gather(-1, tokens)
    group = tokens.shape[2]
    spread = entropy(log_probs.detach())[..., None].expand(-1, -1, group, 1)
    return Rollout(tokens, logp, spread)


def _inverted(
    probs: Float[Tensor, "... vocab"], uniform: Float[Tensor, "... some"]
) -> Int[Tensor, "... some"]:
    """The tokens whose share of the cumulated probabilities holds each uniform number."""
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    target = uniform.double() * cumulated[..., -1:]
    return torch.searchsorted(cumulated, target, right=True).clamp_(max=probs.shape[-1] - 1)


def _net(policy: Policy, vocab: int) -> olmo2_lanes.Net | None:
    """The policy's weights for the passes that are written out; None where there are none for it."""
    if not getattr(policy, "written_out", False) or not olmo2_lanes.supports(policy.model, policy.dtype):
        return None
    weights = policy.weights() or {name: p[None] for name, p in policy.model.named_parameters()}
    return olmo2_lanes.net_of(policy.model, weights, vocab=vocab)


def _sampled(net: olmo2_lanes.Net, prompts, uniforms, vocab: int) -> Rollout:
    """:func:`sample` with passes that are written out."""
    group, horizon = uniforms.shape[2:]
    logits, cache = olmo2_lanes.prompt_pass(net, prompts)
    first = _draw(log_policy(logits, vocab=vocab)[:, :, None], uniforms[..., 0])
    step, drawn = olmo2_lanes.steps(net, cache, group, horizon - 1), [first]
    for t in range(1, horizon):
        with torch.no_grad():
            drawn.append(_drawn(log_policy(step(drawn[-1].tokens[..., 0]), vocab=vocab), uniforms[..., t]))
    tokens, spread = (torch.cat([getattr(now, name) for now in drawn], -1) for name in ("tokens", "entropy"))
    return Rollout(tokens, torch.cat([first.logp, _rest(net, cache, tokens, vocab)], -1), spread)


def _drawn(log_probs: Float[Tensor, "lanes prompts group vocab"], uniform) -> Rollout:
    """:func:`_draw` without a graph and with one exponential: of the policy's own precision, cumulated in float64."""
    probs = log_probs.exp()
    tokens = _inverted(probs, uniform[..., None])
    return Rollout(tokens, log_probs.gather(-1, tokens), -(probs * log_probs).sum(-1, keepdim=True))


def _given(net: olmo2_lanes.Net, prompts, tokens, vocab: int) -> Float[Tensor, "lanes prompts group T"]:
    """:func:`log_probs_of` with passes that are written out."""
    logits, cache = olmo2_lanes.prompt_pass(net, prompts)
    first = log_policy(logits, vocab=vocab).gather(-1, tokens[..., 0])[..., None]
    return torch.cat([first, _rest(net, cache, tokens, vocab)], -1)


def _rest(net: olmo2_lanes.Net, cache: olmo2_lanes.Cache, tokens, vocab: int):
    """log pi of all tokens but the first."""
    logits = olmo2_lanes.score(net, cache, tokens[..., :-1])
    return log_policy(logits, vocab=vocab).gather(-1, tokens[..., 1:, None])[..., 0]
