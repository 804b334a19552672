"""The trainer's settings: which method, how much is sampled, the objective's conventions, the optimiser."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from replicate.settings.conventions import Baseline, Credit, Length, Optimizer, Scale
from replicate.settings.section import GUMBEL_TEMPERATURE, MOST, SIGMA, Says, Section, Text


class GRPO(Section):
    """One update: ``prompts`` x ``group_size`` completions, objective (1), AdamW.

    ``method`` names a module of :mod:`replicate.rl.methods`; "surrogate", objective (1) on sampled tokens, is GRPO and
    its family. ``baseline``, ``scale``, ``length``, ``clip`` and ``kl_coef`` are the conventions of
    :mod:`replicate.rl.grpo`; ``credit`` says which rewards a token's advantage has (:mod:`replicate.rl.credit`), "gae"
    with the critic that learns at ``critic_rate`` and the weight ``gae_weight``. Rewards are multiplied by
    ``reward_scale`` first. ``iterations`` steps of ``optimizer`` are done on each batch of samples (with 1 the ratio is
    1 and the clip never acts); gradients are clipped to norm ``max_grad_norm`` (0: not at all). ``sigma`` is the noise
    of the method "shift" in logits, ``temperature`` that of the soft tokens of "bptt" and "gumbel".
    """

    about: ClassVar[str] = "RL: the method and its conventions; SIGMA and GUMBEL_TEMPERATURE are above."

    method: Text = "surrogate"
    prompts: int = Field(16, ge=1, le=MOST)
    group_size: int = Field(8, ge=2, le=MOST)
    learning_rate: float = Field(2.0e-4, gt=0)
    optimizer: Optimizer = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    reward_scale: float = Field(1.0, gt=0)
    baseline: Baseline = "mean"
    scale: Scale = "std"
    credit: Credit = "outcome"
    gae_weight: float = Field(0.95, ge=0, le=1)
    critic_rate: float = Field(1.0e-3, gt=0)
    length: Length = "sequence"
    clip: float = Field(0.2, gt=0)
    kl_coef: float = Field(0.0, ge=0)
    iterations: int = Field(1, ge=1, le=MOST)
    sigma: float = SIGMA
    temperature: float = GUMBEL_TEMPERATURE

    def complaints(self, says: Says) -> Iterator[str]:
        """SGD without a decay of weights that it does not have."""
        if self.optimizer == "sgd" and self.weight_decay:
            name = says("weight_decay")
            yield f"{name} is AdamW's: with {says('optimizer')} sgd it must be 0, got {self.weight_decay}"
