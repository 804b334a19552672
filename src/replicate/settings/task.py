"""What the model is asked."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import LABELS, MOST, SEED, Section, Seed, Text


class Task(Section):
    """Which task, and the prompts on which it is evaluated and measured.

    ``task`` names a module of :mod:`replicate.rl.tasks`; ``labels`` answers are possible, ``filler`` words stand
    between question and answer; on ``eval_prompts`` prompts RL is evaluated, on ``measure_prompts`` others a checkpoint
    is measured, and RL learns from neither. ``seed`` decides which prompts are drawn.
    """

    about: ClassVar[str] = "The seed of all but RL, and the task."

    seed: Seed = SEED
    task: Text = "label_copying"
    labels: int = LABELS
    filler: int = Field(16, ge=0, le=MOST)
    eval_prompts: int = Field(64, ge=1, le=MOST)
    measure_prompts: int = Field(64, ge=1, le=MOST)
