"""The experiment ``measure``: J_0 and what section 5 measures at one checkpoint, in every reading."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from pydantic import BaseModel

from replicate.impact.forecast import gradient_norm_squared
from replicate.impact.measured import components_by_advantage
from replicate.impact.samples import Noise, PolicyName
from replicate.ladder.checkpoints import Checkpoint
from replicate.models.compilation import compile_blocks
from replicate.rl import tasks
from replicate.rl.prompts import Prompts, evaluate
from replicate.runs import prompts
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
from replicate.settings.task import Task
from replicate.streams import generator
from replicate.threads import fixed_threads


class Settings(BaseModel, frozen=True):
    """The sections that decide the result; the job is given these and no others."""

    task: Task
    measurement: Measurement
    machine: Machine


def run(settings: Settings, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The measurements of one checkpoint, by seed.

    ``ValueError`` for a task whose answer is not one token that is right or wrong.
    """
    tasks.one_token(settings.task)
    with fixed_threads():
        return {seed: _measure(settings, checkpoint, seed) for seed in seeds}


def _measure(settings: Settings, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    machine = settings.machine
    model = checkpoint.model(dtype=getattr(torch, machine.dtype), device=machine.device)
    if machine.compile:
        compile_blocks(model)
    chosen = prompts.measured(settings.task, checkpoint, machine.device)
    found = evaluate(model, chosen)
    return {
        "reward": found.correct.double().mean().item(),
        "label_mass": found.label_mass.double().mean().item(),
        "entropy": found.entropy.double().mean().item(),
        "top": found.top.double().mean().item(),
        "gradient_norm_squared": gradient_norm_squared(model, chosen),
        "readings": list(_readings(settings, model, chosen, (seed, checkpoint.sha, "measure"))),
    }


def _readings(settings: Settings, model, chosen: Prompts, stream: tuple) -> Iterator[dict[str, Any]]:
    """A row per state layer, action model and advantage."""
    noise = Noise(settings.measurement.sigma, settings.measurement.temperature)
    for layer in settings.measurement.layers:
        for policy in get_args(PolicyName):
            measured = components_by_advantage(
                model,
                chosen.tokens,
                chosen.labels,
                layer=layer,
                group_size=settings.measurement.group,
                policy=policy,
                # The same stream for every reading, matched samples; another one at every checkpoint.
                generator=generator(*stream, device=settings.machine.device),
                vocab=chosen.vocab,
                noise=noise,
            )
            for advantage, found in measured.items():
                yield {"layer": layer, "policy": policy, "advantage": advantage, **found.row()}
