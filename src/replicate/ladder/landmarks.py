"""Rungs that tell the story of a ladder: before, during and after the climb of J on label copying."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.rl.prompts import Prompts, evaluate
from replicate.rl.tasks.label_copying import label_copying

STAGES = ("before", "climbing", "after")

# Which stages one, two or three rungs stand for.
_STAGES_OF = {1: ("after",), 2: ("before", "after"), 3: STAGES}


@dataclass(frozen=True)
class Landmark:
    """A checkpoint opened in float64 with eager attention, its J on label copying and what stage it stands for."""

    stage: str
    checkpoint: Checkpoint
    model: PreTrainedModel
    reward: float


def landmarks(ladder: Ladder, prompts: Prompts, steps: Sequence[int] = ()) -> list[Landmark]:
    """First checkpoint, the one with J nearest half-way between the first's and the last's, and the last.

    They are chosen by J on ``prompts``, never by a step number, so that any ladder will do; a ladder of two has a first
    and a last, and a single checkpoint stands for the last. With ``steps``, one to three of them, these are the rungs,
    in that order. Raises ``ValueError`` for more steps than three and for one that the ladder does not have.
    """
    rungs = named(ladder, steps) if steps else list(ladder)
    rewards = [
        evaluate(open_model(rung, dtype=torch.float32), prompts).correct.mean().item() for rung in rungs
    ]
    half = (rewards[0] + rewards[-1]) / 2
    middle = sorted(range(1, len(rungs) - 1), key=lambda i: abs(rewards[i] - half))[:1]
    chosen = list(dict.fromkeys([0, *middle, len(rungs) - 1]))
    stages = _STAGES_OF[len(chosen)]
    return [
        Landmark(stage, rungs[i], open_model(rungs[i]), rewards[i])
        for stage, i in zip(stages, chosen, strict=True)
    ]


def named(ladder: Ladder, steps: Sequence[int]) -> list[Checkpoint]:
    """The checkpoints at ``steps``; ``ValueError`` for more than three and for a step that is not there."""
    if len(steps) > 3:
        raise ValueError(
            f"RUNGS: expected at most 3 steps (before, climbing, after), got {list(steps)}; name fewer"
        )
    return [ladder.at(step) for step in steps]


def focus(rungs: Sequence[Landmark]) -> Landmark:
    """The rung that is looked at most closely: half-way up the climb, where there is one, else the last."""
    return next((rung for rung in rungs if rung.stage == "climbing"), rungs[-1])


def open_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The checkpoint's model with eager attention, without a progress bar."""
    logging.disable_progress_bar()
    return checkpoint.model(dtype=dtype, attention="eager")


def prompts_for(ladder: Ladder, prompts: int, *, filler: int, rng: np.random.Generator) -> Prompts:
    """Label-copying prompts in the words of the ladder's tokenizer, with four labels."""
    return label_copying(next(iter(ladder)).tokenizer(), prompts, labels=4, filler=filler, rng=rng)


@dataclass(frozen=True)
class Columns:
    """What stands at the positions of label-copying prompts: a name each, where the label is (None: nowhere as the one
    token that is asked for) and where the filler words are."""

    names: list[str]
    label: int | None
    filler: list[int]


def columns(ladder: Ladder, prompts: Prompts) -> Columns:
    """Read off the tokens, since a tokenizer may cut them otherwise than at blanks: the label's column agrees with the
    labels, fillers differ between prompts, and what is the same in all is named by its text."""
    tokenizer, table = next(iter(ladder)).tokenizer(), prompts.tokens
    label = next((i for i, at in enumerate(table.T) if torch.equal(at, prompts.labels)), None)
    filler = [i for i, at in enumerate(table.T) if i != label and (at != at[0]).any()]
    names = [tokenizer.decode([token]).strip() for token in table[0].tolist()]
    names = [f"filler {filler.index(i) + 1}" if i in filler else name for i, name in enumerate(names)]
    return Columns(["y" if i == label else name for i, name in enumerate(names)], label, filler)
