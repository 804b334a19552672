"""GRPO on a task whose rewards are read off sampled tokens: all seeds of an experiment at once.

Each lane (seed) has its own prompts, its own uniform numbers and its own parameters, so a lane's results are the same
whoever it shares the batch with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replicate.models.logits import log_policy
from replicate.rl.grpo import Baseline, Length, Scale, group_advantages, k3, surrogate_loss
from replicate.rl.policies import Policy
from replicate.rl.prompts import Prompts, Reward, answers, exact_match
from replicate.rl.rollout import log_probs_of, sample


@dataclass(frozen=True)
class GRPO:
    """Settings of the trainer: how much is sampled, the objective's conventions (see :mod:`.grpo`), the optimiser.

    ``prompts`` x ``group`` completions an update; ``iterations`` updates on each batch of samples (with 1 the ratio is
    1 and the clip never acts); AdamW with ``learning_rate``, gradients clipped to norm ``max_grad_norm``.
    """

    prompts: int = 16
    group: int = 8
    learning_rate: float = 1e-3
    baseline: Baseline = "mean"
    scale: Scale = "std"
    length: Length = "sequence"
    clip: float = 0.2
    kl_coef: float = 0.0
    iterations: int = 1
    horizon: int = 1
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompts", "iterations", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.group < 2:
            raise ValueError(f"group: a group baseline needs at least 2 completions, got {self.group}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate}")


@dataclass(frozen=True)
class Curve:
    """What one seed did. ``updates``: metrics per update; ``budgets``: what the policy is after n updates."""

    seed: int
    updates: list[dict[str, float]] = field(default_factory=list)
    budgets: dict[int, dict[str, float]] = field(default_factory=dict)


def train(
    policy: Policy,
    reference: Policy,
    pool: Prompts,
    held_out: Prompts,
    config: GRPO,
    *,
    seeds: Sequence[int],
    budgets: Sequence[int],
    reward: Reward = exact_match,
) -> list[Curve]:
    """Runs max(budgets) GRPO updates from the policy's present weights, one lane per seed; one curve per seed.

    Prompts come from ``pool``; J, entropy and the exact KL to the start are measured on ``held_out`` before the first
    update (budget 0) and after each of ``budgets`` updates. ``reference`` (frozen) is called only if its KL weighs
    something. Raises ``ValueError`` if a lane's loss or gradient is not finite, naming seed and update.
    """
    if policy.lanes != len(seeds):
        raise ValueError(f"seeds: expected one per lane ({policy.lanes}), got {len(seeds)}")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets: expected numbers of updates of at least 1, got {list(budgets)}")
    if set(pool.text) & set(held_out.text):
        raise ValueError("held_out: expected prompts that are not in the pool, got some that are")
    device = pool.tokens.device
    draws = [torch.Generator(device=device).manual_seed(_stream(seed)) for seed in seeds]
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    curves = [Curve(seed) for seed in seeds]
    start = _held_out_log_policy(policy, held_out)
    _measure(curves, 0, start, start, held_out)
    for update in range(1, max(budgets) + 1):
        for lane, metrics in enumerate(_update(policy, reference, optimizer, pool, config, draws, reward)):
            if not all(map(_finite, metrics.values())):
                raise ValueError(f"seed {seeds[lane]}: update {update} of GRPO is not finite: {metrics}")
            curves[lane].updates.append(metrics)
        if update in budgets:
            _measure(curves, update, _held_out_log_policy(policy, held_out), start, held_out)
    return curves


def _update(policy, reference, optimizer, pool, config, draws, reward) -> list[dict[str, float]]:
    """One batch of samples and ``config.iterations`` updates on it; metrics per lane, of the last of them."""
    chosen = torch.stack([_choose(len(pool), config.prompts, g) for g in draws])
    tokens, labels = pool.tokens[chosen], pool.labels[chosen]
    shape = (config.prompts, config.group, config.horizon)
    uniforms = torch.stack([torch.rand(shape, generator=g, device=g.device) for g in draws])
    rollout = sample(policy, tokens, uniforms, vocab=pool.vocab)
    rewards = reward(rollout.tokens.flatten(0, 1), labels.flatten())
    advantages = group_advantages(rewards, baseline=config.baseline, scale=config.scale)
    advantages = advantages.view(policy.lanes, -1)
    old = rollout.logp.detach().flatten(1, 2)
    ref = None
    if config.kl_coef != 0:
        with torch.no_grad():
            ref = log_probs_of(reference, tokens, rollout.tokens, vocab=pool.vocab).flatten(1, 2)
    mask = torch.ones_like(old, dtype=torch.bool)
    logp = rollout.logp.flatten(1, 2)
    for iteration in range(config.iterations):
        if iteration > 0:
            logp = log_probs_of(policy, tokens, rollout.tokens, vocab=pool.vocab).flatten(1, 2)
        losses = torch.stack(
            [
                surrogate_loss(
                    logp[lane],
                    old[lane],
                    None if ref is None else ref[lane],
                    advantages[lane],
                    mask[lane],
                    clip=config.clip,
                    kl_coef=config.kl_coef,
                    length=config.length,
                    max_length=config.horizon,
                )
                for lane in range(policy.lanes)
            ]
        )
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        norms = policy.clip_gradients(config.max_grad_norm)
        optimizer.step()
    ratio = (logp.detach() - old).exp()
    columns = {
        "reward": rewards.view(policy.lanes, -1).mean(1),
        "loss": losses.detach(),
        "grad_norm": norms,
        "entropy": rollout.entropy.flatten(1).mean(1),
        "clip_fraction": ((ratio - 1).abs() > config.clip).float().flatten(1).mean(1),
    }
    if ref is not None:
        kl = k3(logp.detach().flatten(0, 1), ref.flatten(0, 1), mask.flatten(0, 1))
        columns["kl"] = kl.view(policy.lanes, -1).mean(1)
    table = torch.stack([column.double() for column in columns.values()]).T.tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]


@torch.no_grad()
def _held_out_log_policy(
    policy: Policy, held_out: Prompts, batch: int = 256
) -> Float[Tensor, "lanes rows vocab"]:
    tokens = held_out.tokens.expand(policy.lanes, -1, -1)
    parts = [policy.logits(part, keep=1)[:, :, -1] for part in tokens.split(batch, dim=1)]
    logits = torch.cat(parts, dim=1)
    return log_policy(logits.to(torch.promote_types(logits.dtype, torch.float32)), vocab=held_out.vocab)


def _measure(curves, update, now, start, held_out) -> None:
    for curve, log_probs, before in zip(curves, now, start, strict=True):
        found = answers(log_probs, held_out)
        kl = (log_probs.exp() * (log_probs - before)).sum(-1)  # exact KL(pi_n, pi_0), over the vocabulary
        curve.budgets[update] = {
            "reward": found.correct.double().mean().item(),
            "label_mass": found.label_mass.double().mean().item(),
            "entropy": found.entropy.double().mean().item(),
            "kl_to_start": kl.double().mean().item(),
        }


def _choose(total: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(total, (count,), generator=generator, device=generator.device)


def _stream(seed: int) -> int:
    # Neighbouring seeds of a Mersenne twister are not safely independent; a hash of the seed is.
    import numpy as np

    return int(np.random.SeedSequence((seed, 3)).generate_state(1, dtype=np.uint64)[0] >> 1)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
