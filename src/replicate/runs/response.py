"""The experiment ``rl``: GRPO from one checkpoint, evaluated at the listed budgets."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel

from replicate.ladder.checkpoints import Checkpoint
from replicate.models.compilation import compile_blocks
from replicate.models.precision import trained_dtype
from replicate.rl import alarms, tasks, trainer
from replicate.rl.policies import Policy, SinglePolicy, StackedPolicy
from replicate.runs import prompts
from replicate.settings.grpo import GRPO
from replicate.settings.machine import Machine
from replicate.settings.response import Response
from replicate.settings.task import Task
from replicate.threads import fixed_threads


class Settings(BaseModel, frozen=True):
    """The sections that decide the result; the job is given these and no others."""

    task: Task
    response: Response
    grpo: GRPO
    machine: Machine


def run(settings: Settings, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The RL runs from one checkpoint, by seed; one seed's result does not depend on which others run beside it.

    ``budgets`` has a row for 0 updates and for each budget, ``updates`` one for every update, ``alarms`` one for each
    alarm that these set off (:mod:`replicate.rl.alarms`).
    """
    with fixed_threads():
        batches = _batches(list(seeds), stacked=settings.response.stack_seeds)
        curves = [curve for batch in batches for curve in _train(settings, checkpoint, batch)]
    return {
        curve.seed: {
            "budgets": curve.budgets,
            "updates": curve.updates,
            "alarms": alarms.rung(curve.updates, settings.grpo, curve.budgets),
        }
        for curve in curves
    }


def _batches(seeds: list[int], *, stacked: bool) -> list[list[int]]:
    """Which seeds train together."""
    if not stacked:
        return [[seed] for seed in seeds]
    # One lane alone goes through other kernels than two or more, with other last bits: give it company.
    return [seeds + seeds[:1] if len(seeds) == 1 else seeds]


def _train(settings: Settings, checkpoint: Checkpoint, seeds: list[int]) -> list[trainer.Curve]:
    task, device = tasks.get(settings.task.task), settings.machine.device
    pool = prompts.pool(settings.task, settings.response.pool_prompts, checkpoint, device)
    policy, reference = _policies(settings, checkpoint, len(seeds))
    return trainer.train(
        policy,
        reference,
        pool,
        prompts.held_out(settings.task, checkpoint, device),
        settings.grpo,
        seeds=seeds,
        budgets=sorted(settings.response.budgets),
        horizon=task.horizon(settings.task),
        reward=task.reward(settings.task),
        stream=checkpoint.sha,  # so that no two checkpoints share their luck
    )


def _policies(settings: Settings, checkpoint: Checkpoint, lanes: int) -> tuple[Policy, Policy]:
    """The policy that is trained and a frozen reference (the policy itself where the KL weighs nothing)."""
    dtype = getattr(torch, settings.machine.dtype)
    how = {"dtype": trained_dtype(dtype), "device": settings.machine.device}

    def fresh() -> Policy:
        if settings.response.stack_seeds:
            return StackedPolicy(checkpoint.model(**how, attention="eager"), lanes, dtype=dtype)
        model = checkpoint.model(**how)
        if settings.machine.compile:
            compile_blocks(model)
        return SinglePolicy(model, dtype=dtype)

    policy = fresh()
    return policy, fresh() if settings.grpo.kl_coef else policy
