"""RL on a task whose rewards are read off sampled tokens: all seeds of an experiment at once.

Each lane (seed) has its own prompts, its own random numbers and its own parameters, so a lane's results are the same
whoever it shares the batch with. The trainer is the loop alone; its parts plug in: the method
(:mod:`replicate.rl.methods`), the credit and its critic (:mod:`replicate.rl.credit`), the optimiser, and the judge
(:mod:`replicate.rl.judge`) that says on held-out prompts what became of the policy.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from replicate import streams
from replicate.rl import alarms, methods
from replicate.rl.batch import Actor, Asked, Batch, Completions
from replicate.rl.critic import Critic
from replicate.rl.grpo import k3
from replicate.rl.judge import Curve, Judge
from replicate.rl.policies import Policy
from replicate.rl.prompts import Prompts, Reward, exact_match
from replicate.settings.grpo import GRPO


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
    """Runs max(budgets) updates from the policy's present weights, one lane per seed; one curve per seed.

    Prompts come from ``pool``, answers have ``horizon`` tokens; what became of the policy is judged on ``held_out``
    before the first update (budget 0) and after each of ``budgets`` updates. ``reference`` (frozen) is called only if
    its KL weighs something. A lane's random numbers belong to its seed and ``stream``. Raises ``ValueError`` if a
    lane's loss or gradient is not finite, naming seed, update and the likely cause.
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
    actor = Actor(policy, reference, Critic(policy, config) if config.credit == "gae" else None)
    optimizer = optimizer_of(policy.parameters(), config)
    curves, judge = [Curve(seed) for seed in seeds], Judge(policy, held_out, horizon=horizon, reward=reward)
    judge.note(curves, 0)
    for update in range(1, max(budgets) + 1):
        asked = ask(pool, config, draws, horizon=horizon, reward=reward)
        for curve, metrics in zip(curves, _update(actor, optimizer, asked, config, draws), strict=True):
            if not all(map(math.isfinite, metrics.values())):
                raise ValueError(alarms.not_finite(metrics, update, curve.seed))
            curve.updates.append(metrics)
        if update in budgets:
            judge.note(curves, update)
    return curves


def optimizer_of(parameters: Sequence[Tensor], config: GRPO) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over ``parameters``."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def ask(
    pool: Prompts, config: GRPO, draws: Sequence[torch.Generator], *, horizon: int, reward: Reward
) -> Asked:
    """One update's prompts: each lane draws its own from ``pool`` with its generator of ``draws``."""
    chosen = torch.stack([_choose(len(pool), config.prompts, g) for g in draws])
    return Asked(pool.tokens[chosen], pool.labels[chosen], pool.vocab, horizon, reward)


def _update(actor: Actor, optimizer, asked: Asked, config: GRPO, draws) -> list[dict[str, float]]:
    """``config.iterations`` optimiser steps on one batch; metrics per lane, of the last of them."""
    method = methods.get(config.method)
    batch = method.draw(actor, asked, config, draws)
    if batch.advantages is None and config.credit != "outcome":
        raise ValueError(
            f"credit: method {config.method} has no advantages, expected 'outcome', got {config.credit!r}"
        )
    signal = batch.signal
    for iteration in range(config.iterations):
        if iteration > 0:
            signal = method.again(actor, batch, config)
        loss = method.losses(signal, batch, config)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        norms = actor.policy.clip_gradients(config.max_grad_norm or None)
        optimizer.step()
    # The advantages were made before, so the critic's step changes nothing in this update.
    learnt = {} if batch.lesson is None else actor.critic.fit(batch.lesson)
    return _metrics(batch, config, signal.detach(), loss.detach(), norms, learnt)


def _metrics(batch: Batch, config: GRPO, signal: Completions, loss, norms, learnt) -> list[dict[str, float]]:
    """What is kept of an update, per lane. ``null_groups``: the share of groups whose equal rewards teach nothing."""
    columns = {
        "reward": batch.rewards.mean(1),
        "loss": loss,
        "grad_norm": norms,
        "entropy": batch.entropy.flatten(1).mean(1),
    }
    if batch.old is not None:
        ratio = (signal - batch.old).exp().flatten(1)
        columns["clip_fraction"] = ((ratio - 1).abs() > config.clip).float().mean(1)
        columns["ratio_min"], columns["ratio_max"] = ratio.amin(1), ratio.amax(1)
    if batch.advantages is not None:
        groups = batch.advantages.unflatten(1, (-1, config.group_size))
        columns["null_groups"] = (groups == 0).all(3).all(2).float().mean(1)
    if batch.ref is not None:
        mask = torch.ones_like(signal, dtype=torch.bool)
        kl = k3(signal.flatten(0, 1), batch.ref.flatten(0, 1), mask.flatten(0, 1))
        columns["kl"] = kl.view(len(signal), -1).mean(1)
    columns |= learnt
    table = torch.stack([column.double() for column in columns.values()]).T.tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]


def _choose(total: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(total, (count,), generator=generator, device=generator.device)
