"""The parameters of the notebooks and of the runs: one declaration, checked before any work.

The keys of the YAML files in ``params/`` are the fields of :class:`ScaleParameters`; one flat file serves every
notebook and every command. Notebooks 09, 11 and 12 use all of them, the others a few; each checks all that it is given
and takes what is its own. Types are strict: YAML reads ``1e-5`` as a *string*, which is refused here instead of failing
an hour later. What only the machine can tell (is the folder there, the device?) is asked by :mod:`.preflight`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from replicate.runs import strict_yaml
from replicate.runs.strict_yaml import shown

# Beyond these a number is a slip of the keyboard: nothing here is counted in millions, seeds are 32-bit words.
_MOST = 10**6
_SEED = 2**32 - 1
# What a parameter file holds at most, in characters, and what a refusal does.
_FILE, _LINE, _COMPLAINTS = 10**5, 300, 3


def _printable(text: str) -> str:
    if text.isprintable() and text.strip() == text:
        return text
    raise ValueError("expected a name without control characters and outer blanks")


def _list_in_string(value: Any) -> Any:
    """``-p BUDGETS "[5]"`` reaches a notebook through Papermill as the string ``"[5]"``."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    return strict_yaml.read(value)


Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Integers = Annotated[list[int], BeforeValidator(_list_in_string), Field(min_length=1, max_length=1000)]


class Parameters(BaseModel):
    """Base of all schemas: strict types, finite numbers, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> "Parameters":
        """Checks all of ``values``, the other notebooks' parameters too, and takes those that are this schema's own.

        Raises ``ValueError`` with one line that names ``where`` they came from and every culprit.
        """
        try:
            known = ScaleParameters.model_validate(dict(values))
        except ValidationError as error:
            raise ValueError(located(where, _explanation(error))) from None
        return cls(**{name: getattr(known, name) for name in values if name in cls.model_fields})


class MapParameters(Parameters):
    """Parameters of notebook 00: the folder of a run whose verdicts it shows."""

    RUN_DIR: Text = "results/cpu"


class ToyParameters(Parameters):
    """Parameters of notebooks 01 to 08."""

    SEED: int = Field(0, ge=0, le=_SEED)
    RUN_DIR: Text = "runs/smoke"


class ScaleParameters(Parameters):
    """Parameters of notebooks 09, 11 and 12 and of every run: which checkpoints, what is measured, how RL is done.

    Every notebook's parameters are among them.
    """

    # Where results go, and the ladder: "tiny" trains it from the TINY_* parameters, else a folder of snapshots.
    RUN_DIR: Text = "runs/smoke"
    LADDER: Text = "tiny"
    LADDER_DIR: Text = "runs/ladders"
    SEED: int = Field(0, ge=0, le=_SEED)
    TINY_STEPS: int = Field(300, ge=1, le=_MOST)
    TINY_EVERY: int = Field(30, ge=1, le=_MOST)
    TINY_LAYERS: int = Field(2, ge=1, le=_MOST)
    TINY_HIDDEN: int = Field(64, ge=4, le=_MOST)
    TINY_HEADS: int = Field(4, ge=1, le=_MOST)
    TINY_CONTEXT: int = Field(32, ge=12, le=_MOST)
    TINY_BATCH: int = Field(64, ge=1, le=_MOST)
    TINY_LEARNING_RATE: float = Field(6.0e-3, gt=0)
    TINY_RECORDS: float = Field(0.5, ge=0, le=1)
    TINY_LABEL_DOCUMENTS: float = Field(0.5, ge=0, le=1)
    # The task: label copying, with as many labels as :data:`replicate.rl.tasks.label_copying.LABELS` has at most.
    LABELS: int = Field(4, ge=2, le=16)
    FILLER: int = Field(16, ge=0, le=_MOST)
    POOL_PROMPTS: int = Field(512, ge=1, le=_MOST)
    EVAL_PROMPTS: int = Field(64, ge=1, le=_MOST)
    # Measurement of the costates.
    MEASURE_PROMPTS: int = Field(64, ge=1, le=_MOST)
    MEASURE_GROUP: int = Field(16, ge=2, le=_MOST)
    MEASURE_LAYERS: Integers = [-1]
    SIGMA: float = Field(1.0, gt=0)
    # GRPO.
    RL_SEEDS: Integers = [0, 1, 2]
    BUDGETS: Integers = [5, 10]
    PROMPTS: int = Field(16, ge=1, le=_MOST)
    GROUP_SIZE: int = Field(8, ge=2, le=_MOST)
    LEARNING_RATE: float = Field(2.0e-4, gt=0)
    BASELINE: Literal["mean", "leave_one_out"] = "mean"
    SCALE: Literal["std", "none"] = "std"
    CLIP: float = Field(0.2, gt=0)
    KL_COEF: float = Field(0.0, ge=0)
    ITERATIONS: int = Field(1, ge=1, le=_MOST)
    MAX_GRAD_NORM: float = Field(1.0, gt=0)
    # The machine, and how many resamples the intervals use.
    DEVICE: Text = "cpu"
    DTYPE: Literal["float32", "float64", "bfloat16"] = "float32"
    STACK_SEEDS: bool = True
    RESAMPLES: int = Field(500, ge=100, le=_MOST)

    @model_validator(mode="after")
    def _consistent(self) -> "ScaleParameters":
        if complaints := [*_complaints(self), *(_tiny_complaints(self) if self.LADDER == "tiny" else ())]:
            raise ValueError("; ".join(complaints))
        return self


def _complaints(p: ScaleParameters) -> Iterator[str]:
    """What does not go together in any regime."""
    if p.TINY_STEPS % p.TINY_EVERY:
        yield f"TINY_STEPS must be a multiple of TINY_EVERY ({p.TINY_EVERY}), got {p.TINY_STEPS}"
    if p.TINY_RECORDS + p.TINY_LABEL_DOCUMENTS > 1:
        got = f"{p.TINY_RECORDS} and {p.TINY_LABEL_DOCUMENTS}"
        yield f"TINY_RECORDS and TINY_LABEL_DOCUMENTS are shares and must not exceed 1 together, got {got}"
    for name, least, most in (
        ("RL_SEEDS", 0, _SEED),
        ("BUDGETS", 1, _MOST),
        ("MEASURE_LAYERS", -_MOST, _MOST),
    ):
        values = getattr(p, name)
        if len(set(values)) < len(values) or min(values) < least or max(values) > most:
            yield f"{name} must be distinct numbers from {least} to {most}, got {shown(values)}"
    if p.MEASURE_PROMPTS > p.EVAL_PROMPTS:
        yield f"MEASURE_PROMPTS must be at most EVAL_PROMPTS ({p.EVAL_PROMPTS}), got {p.MEASURE_PROMPTS}"


def _tiny_complaints(p: ScaleParameters) -> Iterator[str]:
    """What the tiny ladder cannot be, or cannot do once it is trained."""
    if p.TINY_HIDDEN % (2 * p.TINY_HEADS):
        yield f"TINY_HIDDEN must be a multiple of 2 x TINY_HEADS ({2 * p.TINY_HEADS}), got {p.TINY_HIDDEN}"
    # "label is Y ; filler... answer : Y" fills a training document at most.
    if p.FILLER + 7 > p.TINY_CONTEXT:
        yield f"TINY_CONTEXT must be at least FILLER + 7 ({p.FILLER + 7}), got {p.TINY_CONTEXT}"
    if complaint := layer_complaint(p, p.TINY_LAYERS):
        yield complaint


def layer_complaint(params: ScaleParameters, depth: int) -> str | None:
    """What is wrong with MEASURE_LAYERS for ``depth`` blocks; layers are those of :mod:`replicate.models.hooks`."""
    if not (outside := [k for k in params.MEASURE_LAYERS if not -1 <= k <= depth]):
        return None
    allowed = f"0 to {depth} or -1, the final state (the model has {depth} blocks)"
    return f"MEASURE_LAYERS must be {allowed}, got {shown(outside)}"


def load(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ScaleParameters:
    """Reads and checks a YAML file of ``params/``; ``overrides`` win over the file.

    Raises ``ValueError`` with one line that names the file and the key at fault.
    """
    try:
        values = strict_yaml.read(_text(Path(path)))
    except ValueError as error:
        raise ValueError(located(str(path), str(error))) from None
    if not isinstance(values, dict):
        got = f"expected a flat mapping of parameters (KEY: value), got {shown(values)}"
        raise ValueError(located(str(path), got))
    where = f"{path} with -p" if overrides else str(path)
    return ScaleParameters.parse({**values, **(overrides or {})}, where=where)


def overrides(items: Sequence[str]) -> dict[str, Any]:
    """The values of ``KEY=VALUE`` items; each value is read as YAML, as in a file. Of equal keys the last one wins.

    Raises ``ValueError`` with one line that names the item.
    """
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ValueError(one_line(f"-p {shown(item)}: expected KEY=VALUE"))
        try:
            values[key.strip()] = strict_yaml.read(text)
        except ValueError as error:
            quotes = "; quote what is text: KEY='\"text\"'" if "not valid YAML" in str(error) else ""
            raise ValueError(one_line(f"-p {shown(item)}: {error}{quotes}")) from None
    return values


def one_line(text: str) -> str:
    """``text`` on one line of printable characters, cut where no reader would go on."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."


def located(where: str, complaint: str) -> str:
    """The line that says where a complaint belongs; of a long path the end is kept."""
    return one_line(f"{where if len(where) <= 120 else f'...{where[-117:]}'}: {complaint}")


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_FILE + 1)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror}); expected a file such as params/cpu.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason}, byte {error.start})") from None
    if len(text) > _FILE:
        raise ValueError(f"too long for a parameter file, expected at most {_FILE} characters")
    return text


def _explanation(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    more = [f"and {len(found) - _COMPLAINTS} more"] if len(found) > _COMPLAINTS else []
    return "; ".join([*map(_explain, found[:_COMPLAINTS]), *more])


def _explain(error: Any) -> str:
    key = ".".join(shown(part, 40).strip("'") for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {key}, {_nearest(key)}"
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    return f"parameter {key}: {message}, got {shown(error['input'])}{_remedy(error)}"


def _nearest(key: str) -> str:
    known = list(ScaleParameters.model_fields)
    near = get_close_matches(key.upper(), known, n=3, cutoff=0.5)
    return f"the nearest known: {', '.join(near)}" if near else "params/cpu.yaml has all that are known"


def _remedy(error: Any) -> str:
    """How a value of the right meaning and the wrong type is written."""
    kind, value = error["type"], error["input"]
    if kind == "list_type":
        return "; write [5, 10]"
    if kind == "bool_type":
        return "; write true or false"
    if kind == "string_type":
        return "; put text in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return _as_number(value, kind)
    return ""


def _as_number(text: str, kind: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return ""
    if kind == "int_type":
        return f"; write {int(value)}" if value.is_integer() and abs(value) < 2**53 else ""
    # YAML takes a number with an exponent for text unless it has a point and a sign: 1.0e-5.
    mantissa, e, exponent = repr(value).partition("e")
    point = "" if not e or "." in mantissa else ".0"
    return f"; write {mantissa}{point}{e}{int(exponent):+d}" if e else f"; write {mantissa}"
