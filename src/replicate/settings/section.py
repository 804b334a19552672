"""What all sections have in common.

A section *is* the configuration of what it configures: the trainer takes a :class:`~replicate.settings.grpo.GRPO`, the
ladder's training a :class:`~replicate.settings.tiny_ladder.TinyLadder`. The flat names of YAML files and notebooks are
derived: a field's name in capitals behind the section's ``prefix``, or its alias. A field that two sections share is
one object with an alias, such as :data:`SEED`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

# Beyond these a number is a slip of the keyboard: nothing here is counted in millions, seeds are 32-bit words.
MOST = 10**6
LARGEST_SEED = 2**32 - 1

Says = Callable[[str], str]
"""How a complaint calls a field: by its own name, or by its flat one."""


def _distinct(least: int, most: int, values: list[int]) -> list[int]:
    if len(set(values)) < len(values) or not all(least <= value <= most for value in values):
        raise ValueError(f"expected distinct numbers from {least} to {most}")
    return values


def distinct(least: int, most: int, *, fewest: int = 1, longest: int = 1000) -> Any:
    """The type of a list of ``fewest`` to ``longest`` distinct integers between ``least`` and ``most``."""
    limits = Field(min_length=fewest, max_length=longest), AfterValidator(partial(_distinct, least, most))
    return Annotated[list[int], *limits]


def _printable(text: str) -> str:
    if text.isprintable() and text.strip() == text:
        return text
    raise ValueError("expected a name without control characters and outer blanks")


Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]

# Shared by sections, so declared here: one seed and one number of labels decide what is learned and what is asked.
SEED = Field(0, alias="SEED")
LABELS = Field(4, ge=2, le=16, alias="LABELS")
# What a policy adds to its logits is the same in a measurement and in RL.
SIGMA = Field(1.0, gt=0, alias="SIGMA")
GUMBEL_TEMPERATURE = Field(1.0, gt=0, alias="GUMBEL_TEMPERATURE")


class Section(BaseModel):
    """Strict types, finite numbers, unknown names refused, no field assigned anew.

    The constructor raises ``ValueError`` with one line that names the field, what was expected and what came.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True
    )

    prefix: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError("; ".join(map(_said, error.errors(include_url=False)))) from None

    @model_validator(mode="after")
    def _sound(self) -> "Section":
        if complaints := list(self.complaints(str)):
            raise ValueError("; ".join(complaints))
        return self

    def complaints(self, says: Says) -> Iterator[str]:
        """What does not go together, field by field right as it may be; ``says`` gives the name to call a field by."""
        yield from ()

    @classmethod
    def flat_name(cls, field: str) -> str:
        """The name of ``field`` in YAML files and notebooks."""
        return cls.model_fields[field].alias or f"{cls.prefix}{field}".upper()


def _said(error: Any) -> str:
    name, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}, got {error['input']!r}" if name else message
