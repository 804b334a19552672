"""The experiment ``rl``: GRPO from one checkpoint, evaluated at the listed budgets."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from replicate.ladder.checkpoints import Checkpoint
from replicate.rl import trainer
from replicate.rl.policies import SinglePolicy, StackedPolicy
from replicate.runs import prompts
from replicate.threads import fixed_threads

SETTINGS = (
    *(
        *prompts.SETTINGS,
        "POOL_PROMPTS",
        "DTYPE",
        "BUDGETS",
        "PROMPTS",
        "GROUP_SIZE",
        "LEARNING_RATE",
        "BASELINE",
    ),
    *("SCALE", "CLIP", "KL_COEF", "ITERATIONS", "MAX_GRAD_NORM", "STACK_SEEDS"),
)
"""The parameters that decide the result; the job is given these and no others."""


def run(settings: SimpleNamespace, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The RL runs from one checkpoint, by seed; one seed's result does not depend on which others run beside it."""
    with fixed_threads():
        curves = [
            curve
            for batch in _batches(settings, list(seeds))
            for curve in _train(settings, checkpoint, batch)
        ]
    return {
        c.seed: {"budgets": {str(n): m for n, m in c.budgets.items()}, "updates": c.updates} for c in curves
    }


def _batches(settings: SimpleNamespace, seeds: list[int]) -> list[list[int]]:
    """Which seeds train together."""
    if not settings.STACK_SEEDS:
        return [[seed] for seed in seeds]
    # One lane alone goes through other kernels than two or more, with other last bits: give it company.
    return [seeds + seeds[:1] if len(seeds) == 1 else seeds]


def _train(settings: SimpleNamespace, checkpoint: Checkpoint, seeds: list[int]):
    pool, held_out = (prompts.draw(settings, checkpoint, which) for which in ("pool", "eval"))
    config = trainer.GRPO(
        prompts=settings.PROMPTS,
        group=settings.GROUP_SIZE,
        learning_rate=settings.LEARNING_RATE,
        baseline=settings.BASELINE,
        scale=settings.SCALE,
        clip=settings.CLIP,
        kl_coef=settings.KL_COEF,
        iterations=settings.ITERATIONS,
        max_grad_norm=settings.MAX_GRAD_NORM,
    )
    policy, reference = _policies(settings, checkpoint, len(seeds))
    budgets = sorted(settings.BUDGETS)
    return trainer.train(policy, reference, pool, held_out, config, seeds=seeds, budgets=budgets)


def _policies(settings: SimpleNamespace, checkpoint: Checkpoint, lanes: int):
    """The policy that is trained and a frozen reference (the policy itself where the KL weighs nothing)."""
    dtype = getattr(torch, settings.DTYPE)

    def fresh():
        if settings.STACK_SEEDS:
            return StackedPolicy(
                checkpoint.model(dtype=dtype, device=settings.DEVICE, attention="eager"), lanes
            )
        return SinglePolicy(checkpoint.model(dtype=dtype, device=settings.DEVICE))

    policy = fresh()
    return policy, fresh() if settings.KL_COEF else policy
