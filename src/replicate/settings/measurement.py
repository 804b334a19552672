"""How much is measured at a checkpoint."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import MOST, Section, distinct


class Measurement(Section):
    """How the costates of section 5 are measured.

    On the first ``prompts`` held-out prompts with ``group`` samples each, at each of ``layers`` (-1: the final state),
    ``sigma`` being the noise of the shift policy in logits.
    """

    prefix: ClassVar[str] = "MEASURE_"
    about: ClassVar[str] = "Measurement of the costates; layer -1 is the final state."

    prompts: int = Field(64, ge=1, le=MOST)
    group: int = Field(16, ge=2, le=MOST)
    layers: distinct(-1, MOST) = Field([-1])
    sigma: float = Field(1.0, gt=0, alias="SIGMA")
