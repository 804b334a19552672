"""The parameters of the notebooks and of the runs: one schema each, checked before any work.

Notebooks 09 to 14 share :class:`ScaleParameters`; the same names are the keys of the YAML files in ``params/``, so
that one flat file fits them all. Notebooks 01 to 08 need less: :class:`ToyParameters`. Types are strict: YAML reads
``1e-5`` as a *string*, which is refused here instead of failing an hour later.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Parameters(BaseModel):
    """Base of all schemas: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Checks ``values``; raises ``ValueError`` with one line naming every culprit and ``where`` it came from."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(f"{where}: " + "; ".join(_explain(cls, e) for e in error.errors())) from None


class ToyParameters(Parameters):
    """Parameters of notebooks 01 to 08."""

    SEED: int = Field(0, ge=0)
    RUN_DIR: str = "runs/smoke"


class MapParameters(Parameters):
    """Parameters of notebook 00: the folder of a run whose verdicts it shows."""

    RUN_DIR: str = "results/cpu"


def _explain(schema: type[Parameters], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "parameters"
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {key} (known: {', '.join(schema.model_fields)})"
    return f"parameter {key}: {error['msg']}, got {error['input']!r}"
