"""How the checkpoints of a ladder are scored on somebody's own task."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import MOST, Section, Seed


class Scoring(Section):
    """``samples`` is the size of GRPO's group, and where completions are rated each of two groups a prompt has as many.

    Completions have at most ``max_tokens`` tokens. ``budget`` is the number of GRPO updates whose gain is predicted.
    Of the task ``prompts`` are taken (None: all). ``batch`` prompts are passed through the model at once; ``seed``
    decides which prompts and which completions are drawn.
    """

    about: ClassVar[str] = "The score of checkpoints on a task of one's own."

    samples: int = Field(8, ge=2, le=MOST)
    max_tokens: int = Field(1, ge=1, le=MOST)
    budget: int = Field(40, ge=1, le=MOST)
    prompts: int | None = Field(None, ge=2, le=MOST)
    batch: int = Field(64, ge=1, le=MOST)
    seed: Seed = 0
