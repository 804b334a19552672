"""How much is measured at a checkpoint."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import GUMBEL_TEMPERATURE, MOST, SIGMA, Section, distinct


class Measurement(Section):
    """How the costates of section 5 are measured.

    With two independent groups of ``group`` samples a prompt, at each of ``layers`` (-1: the final state); ``sigma`` is
    the noise of the shift policy in logits, ``temperature`` that of the Gumbel relaxation. The forecast of RL's gain
    takes its steps from the gradients of ``batches`` batches as RL draws them.
    """

    prefix: ClassVar[str] = "MEASURE_"
    about: ClassVar[str] = "Measurement of the costates; layer -1 is the final state."

    group: int = Field(8, ge=2, le=MOST)
    layers: distinct(-1, MOST) = Field([-1])
    sigma: float = SIGMA
    temperature: float = GUMBEL_TEMPERATURE
    batches: int = Field(8, ge=2, le=MOST)
