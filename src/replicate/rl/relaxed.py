r"""Soft rollouts of a policy, the relaxed reward, and how far its gradient is from that of the discrete reward.

The relaxed rollout of :mod:`replicate.lm.relaxed`, on the prompts of RL, all lanes at once: with Gumbel noise g_t

    y_t = softmax((log pi_t + g_t) / tau),    e_t = sum_v y_t(v) e(v),    o_t = argmax(log pi_t + g_t)

where e_t is what the policy reads next. The hardened token o_1 is an exact sample of pi_1; the later ones are samples
of what the policy thinks behind soft tokens. What the notebooks call the bias of back-propagation through the relaxed
rollout is the mean of :func:`relaxed_gradient` less :func:`discrete_gradient`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.lm.enumeration import all_completions
from replicate.models.logits import entropy, log_policy
from replicate.rl.batch import Asked
from replicate.rl.policies import Behind, Cache, Policy, repeat_cache, side_by_side
from replicate.rl.rollout import first_of, log_probs_of, members_of

Choose = Callable[[int, Tensor], tuple[Tensor, ...]]
"""From the step t and log pi_t [lanes, prompts, group or 1, vocab] to the soft token [lanes, prompts, group, vocab]
that is read next, and whatever else is to be kept of the step, each [lanes, prompts, group, ...]."""


@dataclass(frozen=True)
class SoftRollout:
    """Soft tokens with their graph, the hardened tokens, and the entropies in nats of the policies, without graph."""

    soft: Float[Tensor, "lanes prompts group T vocab"]
    tokens: Int[Tensor, "lanes prompts group T"]
    entropy: Float[Tensor, "lanes prompts group T"]


def gumbels(generators: Sequence[torch.Generator], *shape: int) -> Float[Tensor, "lanes ..."]:
    """Standard Gumbel noise of ``shape`` for each lane, in float64: the same in whatever precision the policy is."""
    how = {"dtype": torch.float64}
    uniform = torch.stack([torch.rand(shape, generator=g, device=g.device, **how) for g in generators])
    return -(-uniform.clamp_min(1e-300).log()).log()


def walk(
    policy: Policy,
    first: Float[Tensor, "lanes prompts 1 vocab"],
    cache: Cache | None,
    choose: Choose,
    *,
    group: int,
    horizon: int,
    length: int,
) -> tuple[Tensor, ...]:
    """What ``choose`` made of every step, part by part, each [lanes, prompts, group, T, ...].

    ``first`` is log pi_1 and ``cache`` the prompts of ``length`` tokens (:func:`~replicate.rl.rollout.first_of`), which
    stays as it is. Gradients flow through every token that is read, unless ``choose`` or the caller stops them.
    """
    log_probs, more = first, horizon - 1
    taken = [choose(0, log_probs)]
    if more:
        members = members_of(group, more)
        grown = repeat_cache(cache, group // members)
        steps = side_by_side(length, members, more, device=first.device)
    for t in range(more):
        now = slice(t * members, (t + 1) * members)
        behind = Behind(steps.positions[now], steps.sees[now, : length + (t + 1) * members])
        tokens = taken[-1][0].unflatten(2, (-1, members)).flatten(1, 2)
        logits = policy.logits(tokens, keep=members, cache=grown, behind=behind)
        logits = logits.unflatten(1, (first.shape[1], -1)).flatten(2, 3)
        log_probs = log_policy(logits, vocab=first.shape[3])
        taken.append(choose(t + 1, log_probs))
    return tuple(torch.stack(part, 3) for part in zip(*taken, strict=True))


def relaxed_rollout(
    policy: Policy,
    prompts: Int[Tensor, "lanes prompts length"],
    noise: Float[Tensor, "lanes prompts group T vocab"],
    *,
    temperature: float,
) -> SoftRollout:
    """The rollout of the module's text, a function of the weights and of Gumbel ``noise`` g, with its graph.

    Raises ``ValueError`` for a temperature that is not positive, and for noise without a group or a step.
    """
    group, horizon, vocab = noise.shape[2:]
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if group < 1 or horizon < 1:
        raise ValueError(f"noise: expected a group and a horizon of at least 1, got {list(noise.shape)}")
    cache: Cache | None = [] if horizon > 1 else None
    first = first_of(policy, prompts, cache, vocab=vocab)

    def choose(t: int, log_probs: Tensor) -> tuple[Tensor, ...]:
        perturbed = log_probs + noise[:, :, :, t].to(log_probs.dtype)
        spread = entropy(log_probs.detach()).expand(-1, -1, group)
        return (perturbed / temperature).softmax(-1), perturbed.detach().argmax(-1), spread

    sizes = {"group": group, "horizon": horizon, "length": prompts.shape[2]}
    return SoftRollout(*walk(policy, first, cache, choose, **sizes))


def relaxed_reward(asked: Asked, rollout: SoftRollout) -> Float[Tensor, "lanes prompts group"]:
    """The reward of soft tokens, from what each gives to its right token, y_t(label_t):

        one reward a completion: "all right", prod_t y_t(label_t);    one a token: "each right", their mean over t

    For answers of one token both are y(label). The shape of what ``asked.reward`` returns says which it is. Raises
    ``ValueError`` if on the hardened tokens, or on the right answer, it is neither: its relaxation would be a guess.
    """
    tokens, labels = (
        rollout.tokens,
        asked.labels.flatten(2) if asked.labels.ndim > 2 else asked.labels[..., None],
    )
    long, group = labels.shape[2], tokens.shape[2]
    tried, right = tokens.clone(), labels[:, :, None].expand(-1, -1, group, -1)
    tried[:, :, 0, :long] = labels
    found = asked.reward(tried.flatten(0, 1), asked.labels.flatten(0, 1))
    merged = torch.mean if found.ndim == 3 else torch.prod
    expected = merged((tried[..., :long] == right).to(found.dtype), -1)
    given = found.sum(-1) if found.ndim == 3 else found
    if not torch.allclose(given, expected.flatten(0, 1), atol=1e-5):
        raise ValueError(
            "reward: expected 1 for a completion that is right and 0 for others, or the share of right tokens token by "
            "token; the relaxation of another reward is not known"
        )
    return merged(rollout.soft[:, :, :, :long].gather(-1, right[..., None])[..., 0], -1)


def relaxed_gradient(
    policy: Policy,
    asked: Asked,
    noise: Float[Tensor, "lanes prompts group T vocab"],
    *,
    temperature: float,
) -> Float[Tensor, "lanes parameters"]:
    """The gradient in the parameters of each lane's mean relaxed reward, without the graph.

    With one prompt, a group of 1 and ``lanes`` copies of the same weights these are so many independent draws of what
    one completion sends back. Parameters of which the reward is no function get zeros.
    """
    with torch.enable_grad():
        rollout = relaxed_rollout(policy, asked.tokens, noise, temperature=temperature)
        return _gradient(policy, relaxed_reward(asked, rollout).mean((1, 2)))


def discrete_gradient(policy: Policy, asked: Asked) -> Float[Tensor, "lanes parameters"]:
    """The exact gradient of each lane's E[R], the mean over its prompts of sum_o P(o | q) R(o), by running through all
    vocab^T completions; ``ValueError`` for more than can be enumerated."""
    every = all_completions(asked.vocab, asked.horizon).to(asked.tokens.device)
    tokens = every.expand(*asked.tokens.shape[:2], -1, -1)
    with torch.enable_grad():
        log_probs = log_probs_of(policy, asked.tokens, tokens, vocab=asked.vocab)
        values = (log_probs.sum(-1).exp() * asked.rated(tokens).sum(-1)).sum(-1)
        return _gradient(policy, values.mean(1))


def _gradient(policy: Policy, values: Float[Tensor, " lanes"]) -> Float[Tensor, "lanes parameters"]:
    """A lane's value depends on its own parameters alone, so that one backward pass serves them all."""
    found = torch.autograd.grad(values.sum(), policy.parameters(), materialize_grads=True)
    return torch.cat([gradient.reshape(policy.lanes, -1) for gradient in found], 1)
