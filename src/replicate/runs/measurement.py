"""The experiment ``measure``: J_0 and what section 5 measures at one checkpoint, in every reading."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, get_args

import torch

from replicate.impact.measured import PolicyName, components_by_advantage, gradient_norm_squared
from replicate.ladder.checkpoints import Checkpoint
from replicate.rl.prompts import Prompts, evaluate
from replicate.runs import prompts
from replicate.threads import fixed_threads

SETTINGS = (*prompts.SETTINGS, "DTYPE", "MEASURE_PROMPTS", "MEASURE_GROUP", "MEASURE_LAYERS", "SIGMA")
"""The parameters that decide the result; the job is given these and no others."""


def run(settings: SimpleNamespace, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The measurements of one checkpoint, by seed."""
    with fixed_threads():
        return {seed: _measure(settings, checkpoint, seed) for seed in seeds}


def _measure(settings: SimpleNamespace, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    model = checkpoint.model(dtype=getattr(torch, settings.DTYPE), device=settings.DEVICE)
    held_out = prompts.draw(settings, checkpoint, "eval")
    found = evaluate(model, held_out)
    chosen = held_out.select(torch.arange(min(settings.MEASURE_PROMPTS, len(held_out))))
    return {
        "reward": found.correct.double().mean().item(),
        "label_mass": found.label_mass.double().mean().item(),
        "entropy": found.entropy.double().mean().item(),
        "top": found.top.double().mean().item(),
        "gradient_norm_squared": gradient_norm_squared(model, chosen),
        "readings": list(_readings(settings, model, chosen, seed)),
    }


def _readings(settings: SimpleNamespace, model, chosen: Prompts, seed: int) -> Iterator[dict[str, Any]]:
    """A row per state layer, action model and advantage."""
    for layer in settings.MEASURE_LAYERS:
        for policy in get_args(PolicyName):
            measured = components_by_advantage(
                model,
                chosen.tokens,
                chosen.labels,
                layer=layer,
                group_size=settings.MEASURE_GROUP,
                policy=policy,
                # The same stream for every reading: matched samples.
                generator=torch.Generator(device=settings.DEVICE).manual_seed(seed),
                vocab=chosen.vocab,
                sigma=settings.SIGMA,
            )
            for advantage, found in measured.items():
                row = {name: value for name, value in vars(found).items() if name != "per_prompt"}
                yield {"layer": layer, "policy": policy, "advantage": advantage, **row}
