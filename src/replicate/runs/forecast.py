"""The experiment ``forecast``: what RL will gain from one checkpoint, without running it, with no fitted number."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel

from replicate.impact import forecast
from replicate.ladder.checkpoints import Checkpoint
from replicate.models.precision import trained_dtype
from replicate.rl import tasks
from replicate.rl.policies import SinglePolicy
from replicate.runs import prompts
from replicate.settings.grpo import GRPO
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
from replicate.settings.response import Response
from replicate.settings.task import Task
from replicate.streams import generator
from replicate.threads import fixed_threads


class Settings(BaseModel, frozen=True):
    """The sections that decide the result; the job is given these and no others."""

    task: Task
    measurement: Measurement
    response: Response
    grpo: GRPO
    machine: Machine


def run(settings: Settings, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The forecasts from one checkpoint, by seed: ``budgets`` has a row for each budget.

    ``ValueError`` for a task whose answer is not one token that is right or wrong.
    """
    with fixed_threads():
        return {seed: _forecast(settings, checkpoint, seed) for seed in seeds}


def _forecast(settings: Settings, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    device, task = settings.machine.device, tasks.one_token(settings.task)
    # The steps of the optimiser, and what they change, are too small for half precision.
    dtype = trained_dtype(getattr(torch, settings.machine.dtype))
    how = {"dtype": dtype, "device": device, "attention": "eager"}
    model = checkpoint.model(**how)
    reference = SinglePolicy(checkpoint.model(**how)) if settings.grpo.kl_coef else None
    measured = prompts.measured(settings.task, checkpoint, device)
    gradient = forecast.objective_gradient(model, measured)
    gradients = list(
        forecast.batch_gradients(
            model,
            reference,
            prompts.pool(settings.task, settings.response.pool_prompts, checkpoint, device),
            settings.grpo,
            batches=settings.measurement.batches,
            generator=generator(seed, checkpoint.sha, "forecast", device=device),
            horizon=task.horizon(settings.task),
            reward=task.reward(settings.task),
        )
    )
    steps = forecast.frozen_steps(model, gradients, settings.grpo, settings.response.budgets)
    budgets = [{"budget": n, **forecast.gains(model, measured, gradient, step)} for n, step in steps]
    return {"budgets": budgets, **forecast.in_parameter_space(gradient, gradients)}
