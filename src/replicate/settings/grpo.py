"""The trainer's settings: how much is sampled, the objective's conventions, the optimiser."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.conventions import Baseline, Length, Scale
from replicate.settings.section import MOST, Section


class GRPO(Section):
    """One update: ``prompts`` x ``group_size`` completions, objective (1), AdamW.

    ``baseline``, ``scale``, ``length``, ``clip`` and ``kl_coef`` are the conventions of :mod:`replicate.rl.grpo`;
    ``iterations`` optimiser steps are done on each batch of samples (with 1 the ratio is 1 and the clip never acts);
    gradients are clipped to norm ``max_grad_norm`` (0: not at all).
    """

    about: ClassVar[str] = "GRPO."

    prompts: int = Field(16, ge=1, le=MOST)
    group_size: int = Field(8, ge=2, le=MOST)
    learning_rate: float = Field(2.0e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    baseline: Baseline = "mean"
    scale: Scale = "std"
    length: Length = "sequence"
    clip: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    iterations: int = Field(1, ge=1, le=MOST)
