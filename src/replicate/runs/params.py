"""The parameters of the notebooks and of the runs: one schema each, checked before any work.

Notebooks 09 to 14 share :class:`ScaleParameters`; the same names are the keys of the YAML files in ``params/``, so
that one flat file fits them all. Notebooks 01 to 08 need less: :class:`ToyParameters`. Types are strict: YAML reads
``1e-5`` as a *string*, which is refused here instead of failing an hour later.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Parameters(BaseModel):
    """Base of all schemas: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> "Parameters":
        """Checks ``values``; raises ``ValueError`` with one line naming every culprit and ``where`` it came from."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(f"{where}: " + "; ".join(_explain(cls, e) for e in error.errors())) from None


class ToyParameters(Parameters):
    """Parameters of notebooks 01 to 08."""

    SEED: int = Field(0, ge=0)
    RUN_DIR: str = "runs/smoke"


class ScaleParameters(Parameters):
    """Parameters of notebooks 09 to 14 and of every run: which checkpoints, what is measured, how RL is done."""

    # Where results go, and the ladder: "tiny" trains it from the TINY_* parameters, else a folder of snapshots.
    RUN_DIR: str = "runs/smoke"
    LADDER: str = "tiny"
    LADDER_DIR: str = "runs/ladders"
    SEED: int = Field(0, ge=0)
    TINY_STEPS: int = Field(300, ge=1)
    TINY_EVERY: int = Field(30, ge=1)
    TINY_LAYERS: int = Field(2, ge=1)
    TINY_HIDDEN: int = Field(64, ge=4)
    TINY_HEADS: int = Field(4, ge=1)
    TINY_CONTEXT: int = Field(32, ge=12)
    TINY_BATCH: int = Field(64, ge=1)
    TINY_LEARNING_RATE: float = Field(6.0e-3, gt=0)
    TINY_RECORDS: float = Field(0.5, ge=0, le=1)
    TINY_LABEL_DOCUMENTS: float = Field(0.5, ge=0, le=1)
    # The task.
    LABELS: int = Field(4, ge=2)
    FILLER: int = Field(16, ge=0)
    POOL_PROMPTS: int = Field(512, ge=1)
    EVAL_PROMPTS: int = Field(64, ge=1)
    # Measurement of the costates.
    MEASURE_PROMPTS: int = Field(64, ge=1)
    MEASURE_GROUP: int = Field(16, ge=2)
    MEASURE_LAYERS: list[int] = Field([-1], min_length=1)
    SIGMA: float = Field(1.0, gt=0)
    # GRPO.
    RL_SEEDS: list[int] = Field([0, 1, 2], min_length=1)
    BUDGETS: list[int] = Field([5, 10], min_length=1)
    PROMPTS: int = Field(16, ge=1)
    GROUP_SIZE: int = Field(8, ge=2)
    LEARNING_RATE: float = Field(2.0e-4, gt=0)
    BASELINE: Literal["mean", "leave_one_out"] = "mean"
    SCALE: Literal["std", "none"] = "std"
    CLIP: float = Field(0.2, gt=0)
    KL_COEF: float = Field(0.0, ge=0)
    ITERATIONS: int = Field(1, ge=1)
    MAX_GRAD_NORM: float = Field(1.0, gt=0)
    # The machine, and how many resamples the intervals use.
    DEVICE: str = "cpu"
    DTYPE: Literal["float32", "float64", "bfloat16"] = "float32"
    STACK_SEEDS: bool = True
    RESAMPLES: int = Field(500, ge=100)

    @model_validator(mode="after")
    def _consistent(self) -> "ScaleParameters":
        if self.TINY_STEPS % self.TINY_EVERY:
            raise ValueError(
                f"TINY_STEPS must be a multiple of TINY_EVERY ({self.TINY_EVERY}), got {self.TINY_STEPS}"
            )
        if self.TINY_RECORDS + self.TINY_LABEL_DOCUMENTS > 1:
            raise ValueError("TINY_RECORDS + TINY_LABEL_DOCUMENTS must not exceed 1")
        for name in ("RL_SEEDS", "BUDGETS", "MEASURE_LAYERS"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name != "MEASURE_LAYERS" and min(values) < 0):
                raise ValueError(f"{name} must be distinct numbers, none negative, got {values}")
        if min(self.BUDGETS) < 1:
            raise ValueError(f"BUDGETS must be at least 1, got {self.BUDGETS}")
        return self


class MapParameters(Parameters):
    """Parameters of notebook 00: the folder of a run whose verdicts it shows."""

    RUN_DIR: str = "results/cpu"


def load(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ScaleParameters:
    """Reads and checks a YAML file of ``params/``; ``overrides`` win over the file.

    Raises ``ValueError`` with one line that names the file and the key at fault.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a flat mapping of parameters, got {type(values).__name__}")
    return ScaleParameters.parse({**values, **(overrides or {})}, where=str(path))


def _explain(schema: type[Parameters], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "parameters"
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {key} (known: {', '.join(schema.model_fields)})"
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    return f"parameter {key}: {error['msg']}, got {error['input']!r}"
