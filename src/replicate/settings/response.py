"""How the response to RL is measured."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import MOST, Section, distinct


class Response(Section):
    """RL from one checkpoint: evaluated after each of ``budgets`` updates, prompts drawn from ``pool_prompts``.

    ``stack_seeds`` trains all seeds of a checkpoint as one batched computation (a tiny model) or one after another.
    """

    about: ClassVar[str] = "RL from each checkpoint: after how many updates it is evaluated."

    budgets: distinct(1, MOST) = Field([5, 10])
    pool_prompts: int = Field(512, ge=1, le=MOST)
    stack_seeds: bool = True
