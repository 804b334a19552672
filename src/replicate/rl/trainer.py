"""GRPO on a task whose rewards are read off sampled tokens: all seeds of an experiment at once.

Each lane (seed) has its own prompts, its own uniform numbers and its own parameters, so a lane's results are the same
whoever it shares the batch with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate import streams
from replicate.models.logits import log_policy
from replicate.rl.grpo import group_advantages, k3, surrogate_loss
from replicate.rl.policies import Policy
from replicate.rl.prompts import Prompts, Reward, answers, exact_match
from replicate.rl.rollout import Rollout, log_probs_of, sample
from replicate.settings.grpo import GRPO


@dataclass(frozen=True)
class Curve:
    """What one seed did: a row of metrics per update, and a row of what the policy is after each ``budget``."""

    seed: int
    updates: list[dict[str, float]] = field(default_factory=list)
    budgets: list[dict[str, float | int]] = field(default_factory=list)


def train(
    policy: Policy,
    reference: Policy,
    pool: Prompts,
    held_out: Prompts,
    config: GRPO,
    *,
    seeds: Sequence[int],
    budgets: Sequence[int],
    horizon: int = 1,
    reward: Reward = exact_match,
    stream: str = "",
) -> list[Curve]:
    """Runs max(budgets) GRPO updates from the policy's present weights, one lane per seed; one curve per seed.

    Prompts come from ``pool``, answers have ``horizon`` tokens; J, entropy and the exact KL to the start are measured
    on ``held_out`` before the first update (budget 0) and after each of ``budgets`` updates. ``reference`` (frozen) is
    called only if its KL weighs something. A lane's random numbers belong to its seed and ``stream``. Raises
    ``ValueError`` if a lane's loss or gradient is not finite, naming seed and update.
    """
    if policy.lanes != len(seeds):
        raise ValueError(f"seeds: expected one per lane ({policy.lanes}), got {len(seeds)}")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets: expected numbers of updates of at least 1, got {list(budgets)}")
    if horizon < 1:
        raise ValueError(f"horizon: expected at least one token, got {horizon}")
    if set(pool.text) & set(held_out.text):
        raise ValueError("held_out: expected prompts that are not in the pool, got some that are")
    draws = [streams.generator(seed, stream, "grpo", device=pool.tokens.device) for seed in seeds]
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    curves = [Curve(seed) for seed in seeds]
    start = _held_out_log_policy(policy, held_out)
    _measure(curves, 0, start, start, held_out)
    for update in range(1, max(budgets) + 1):
        batch = sampled(policy, reference, pool, config, draws, horizon, reward)
        for curve, metrics in zip(curves, _update(policy, optimizer, batch, config), strict=True):
            if not all(map(math.isfinite, metrics.values())):
                raise ValueError(f"seed {curve.seed}: update {update} of GRPO is not finite: {metrics}")
            curve.updates.append(metrics)
        if update in budgets:
            _measure(curves, update, _held_out_log_policy(policy, held_out), start, held_out)
    return curves


Completions = Float[Tensor, "lanes completions T"]


@dataclass(frozen=True)
class Batch:
    """The samples of one update: ``prompts`` x ``group`` completions a lane, and what objective (1) needs of them.

    ``logp`` comes with the graph of the pass that sampled; ``old`` is the same without; ``ref`` the reference's (None
    where its KL weighs nothing).
    """

    prompts: Int[Tensor, "lanes prompts length"]
    rollout: Rollout
    rewards: Float[Tensor, "lanes completions"]
    advantages: Float[Tensor, "lanes completions"]
    logp: Completions
    old: Completions
    ref: Completions | None
    vocab: int


def sampled(policy, reference, pool, config, draws, horizon, reward) -> Batch:
    """One update's samples: each lane draws prompts and completions from its generator of ``draws``, and has them
    rated."""
    chosen = torch.stack([_choose(len(pool), config.prompts, g) for g in draws])
    tokens, labels = pool.tokens[chosen], pool.labels[chosen]
    shape = (config.prompts, config.group_size, horizon)
    uniforms = torch.stack([torch.rand(shape, generator=g, device=g.device) for g in draws])
    rollout = sample(policy, tokens, uniforms, vocab=pool.vocab)
    rewards = reward(rollout.tokens.flatten(0, 1), labels.flatten())
    advantages = group_advantages(rewards, baseline=config.baseline, scale=config.scale)
    ref = None
    if config.kl_coef != 0:
        with torch.no_grad():
            ref = log_probs_of(reference, tokens, rollout.tokens, vocab=pool.vocab).flatten(1, 2)
    logp = rollout.logp.flatten(1, 2)
    per_lane = (x.view(policy.lanes, -1) for x in (rewards, advantages))
    return Batch(tokens, rollout, *per_lane, logp, logp.detach(), ref, pool.vocab)


def _update(policy, optimizer, batch: Batch, config: GRPO) -> list[dict[str, float]]:
    """``config.iterations`` optimiser steps on one batch; metrics per lane, of the last of them."""
    logp = batch.logp
    for iteration in range(config.iterations):
        if iteration > 0:
            logp = log_probs_of(policy, batch.prompts, batch.rollout.tokens, vocab=batch.vocab).flatten(1, 2)
        loss = losses(logp, batch, config)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        norms = policy.clip_gradients(config.max_grad_norm or None)
        optimizer.step()
    return _metrics(batch, config, logp.detach(), loss.detach(), norms)


def losses(logp: Completions, batch: Batch, config: GRPO) -> Float[Tensor, " lanes"]:
    """Minus objective (1), lane by lane."""
    mask = torch.ones_like(batch.old[0], dtype=torch.bool)
    found = [
        surrogate_loss(
            logp[lane],
            batch.old[lane],
            None if batch.ref is None else batch.ref[lane],
            batch.advantages[lane],
            mask,
            clip=config.clip,
            kl_coef=config.kl_coef,
            length=config.length,
            max_length=logp.shape[2],
        )
        for lane in range(len(logp))
    ]
    return torch.stack(found)


def _metrics(batch: Batch, config: GRPO, logp: Completions, loss, norms) -> list[dict[str, float]]:
    """What is kept of an update, per lane. ``null_groups``: the share of groups whose equal rewards teach nothing."""
    ratio = (logp - batch.old).exp()
    groups = batch.advantages.unflatten(1, (-1, config.group_size))
    columns = {
        "reward": batch.rewards.mean(1),
        "loss": loss,
        "grad_norm": norms,
        "entropy": batch.rollout.entropy.flatten(1).mean(1),
        "clip_fraction": ((ratio - 1).abs() > config.clip).float().flatten(1).mean(1),
        "null_groups": (groups == 0).all(2).float().mean(1),
    }
    if batch.ref is not None:
        mask = torch.ones_like(logp, dtype=torch.bool)
        kl = k3(logp.flatten(0, 1), batch.ref.flatten(0, 1), mask.flatten(0, 1))
        columns["kl"] = kl.view(len(logp), -1).mean(1)
    table = torch.stack([column.double() for column in columns.values()]).T.tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]


@torch.no_grad()
def _held_out_log_policy(
    policy: Policy, held_out: Prompts, batch: int = 256
) -> Float[Tensor, "lanes rows vocab"]:
    tokens = held_out.tokens.expand(policy.lanes, -1, -1)
    parts = [policy.logits(part, keep=1)[:, :, -1] for part in tokens.split(batch, dim=1)]
    logits = torch.cat(parts, dim=1)
    return log_policy(logits, vocab=held_out.vocab)


def _measure(curves, update, now, start, held_out) -> None:
    for curve, log_probs, before in zip(curves, now, start, strict=True):
        found = answers(log_probs, held_out)
        kl = (log_probs.exp() * (log_probs - before)).sum(-1)  # exact KL(pi_n, pi_0), over the vocabulary
        row = {
            "budget": update,
            "reward": found.correct.double().mean().item(),
            "label_mass": found.label_mass.double().mean().item(),
            "entropy": found.entropy.double().mean().item(),
            "kl_to_start": kl.double().mean().item(),
        }
        curve.budgets.append(row)


def _choose(total: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(total, (count,), generator=generator, device=generator.device)
