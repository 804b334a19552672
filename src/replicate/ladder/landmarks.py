"""Three rungs that tell the story of a ladder: before, during and after the climb of J on label copying."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.rl.prompts import Prompts, evaluate
from replicate.rl.tasks.label_copying import label_copying


@dataclass(frozen=True)
class Landmark:
    """A checkpoint opened in float64 with eager attention, its J on label copying and what stage it stands for."""

    stage: str
    checkpoint: Checkpoint
    model: PreTrainedModel
    reward: float


def landmarks(ladder: Ladder, prompts: Prompts) -> list[Landmark]:
    """First checkpoint, the one with J nearest half-way between the first's and the last's, and the last.

    They are chosen by J on ``prompts``, never by a step number, so that any ladder will do. Raises ``ValueError`` for
    a ladder of fewer than three.
    """
    if len(ladder) < 3:
        raise ValueError(f"ladder: expected at least 3 checkpoints, got {len(ladder)}")
    rungs = list(ladder)
    rewards = [
        evaluate(open_model(rung, dtype=torch.float32), prompts).correct.mean().item() for rung in rungs
    ]
    half = (rewards[0] + rewards[-1]) / 2
    middle = min(range(1, len(rungs) - 1), key=lambda i: abs(rewards[i] - half))
    chosen = {"before": 0, "climbing": middle, "after": len(rungs) - 1}
    return [Landmark(stage, rungs[i], open_model(rungs[i]), rewards[i]) for stage, i in chosen.items()]


def open_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The checkpoint's model with eager attention, without a progress bar."""
    logging.disable_progress_bar()
    return checkpoint.model(dtype=dtype, attention="eager")


def prompts_for(ladder: Ladder, prompts: int, *, filler: int, rng: np.random.Generator) -> Prompts:
    """Label-copying prompts in the words of the ladder's tokenizer, with four labels."""
    return label_copying(next(iter(ladder)).tokenizer(), prompts, labels=4, filler=filler, rng=rng)
