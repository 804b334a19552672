"""The parameters of the notebooks and of the runs, checked before any work.

They are declared in :mod:`replicate.settings`, section by section; here their flat names are put together. The keys of
the YAML files in ``params/`` are the fields of :class:`ScaleParameters`; one flat file serves every notebook and every
command. Notebooks from 09 on use all of them, the others a few; each checks all that it is given and takes what is its
own. Types are strict: YAML reads ``1e-5`` as a *string*, which is refused here instead of failing an hour later. What
only the machine can tell (is the folder there, the device?) is asked by :mod:`replicate.runs.preflight`.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

from replicate.rl import methods, tasks
from replicate.runs import strict_yaml
from replicate.runs.strict_yaml import shown
from replicate.settings.grpo import GRPO
from replicate.settings.hub import Hub
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
from replicate.settings.response import Response
from replicate.settings.run import Run
from replicate.settings.section import Section
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder

SECTIONS: tuple[type[Section], ...] = (Run, Hub, Task, TinyLadder, Measurement, Response, GRPO, Machine)
"""All sections, in the order of the YAML files."""

S = TypeVar("S", bound=Section)

# What a parameter file holds at most, in characters, and what a refusal does.
_FILE, _LINE, _COMPLAINTS = 10**5, 300, 3


class Parameters(BaseModel):
    """Base of all schemas: strict types, finite numbers, unknown keys refused, immutable."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> "Parameters":
        """Checks all of ``values``, the other notebooks' parameters too, and takes those that are this schema's own.

        Raises ``ValueError`` with one line that names ``where`` they came from and every culprit.
        """
        try:
            known = ScaleParameters.model_validate(_lists_read(values))
        except ValidationError as error:
            raise ValueError(located(where, _explanation(error))) from None
        return cls(**{name: getattr(known, name) for name in values if name in cls.model_fields})

    def section(self, section: type[S]) -> S:
        """The parameters of one section, as what they configure takes them."""
        return section(**_fields(self, section))


class _Whole(Parameters):
    """All parameters together, and what does not go together among them."""

    @model_validator(mode="after")
    def _consistent(self) -> "_Whole":
        if complaints := list(_complaints(self)):
            raise ValueError("; ".join(complaints))
        return self


def _fields(params: Parameters, section: type[Section]) -> dict[str, Any]:
    return {field: getattr(params, section.flat_name(field)) for field in section.model_fields}


def _flat(name: str, base: type[Parameters], only: Collection[str] | None = None, **defaults: Any) -> Any:
    """A schema of the sections' fields under their flat names: all of them, or ``only`` some."""
    fields = {}
    for section in SECTIONS:
        for field, info in section.model_fields.items():
            flat, info = section.flat_name(field), copy(info)
            info.default, info.alias, info.validation_alias, info.serialization_alias = (
                defaults.get(flat, info.default),
                *(None,) * 3,
            )
            if only is None or flat in only:
                fields.setdefault(flat, (info.annotation, info))
    return create_model(name, __base__=base, __module__=__name__, **fields)


ScaleParameters = _flat("ScaleParameters", _Whole)
"""Parameters of notebooks from 09 on and of every run. Every notebook's parameters are among them."""

ToyParameters = _flat("ToyParameters", Parameters, only=("RUN_DIR", "LADDER_DIR", "SEED"))
"""Parameters of notebooks 01 to 04."""

LanguageParameters = _flat(
    "LanguageParameters",
    Parameters,
    only=("RUN_DIR", "LADDER", "LADDER_DIR", "RUNGS", "MAX_MEMORY_GB", "HUB_LOCK", "SEED"),
)
"""Parameters of notebooks 05 to 08, which look closely at a few rungs of one ladder."""

MapParameters = _flat("MapParameters", Parameters, only=("RUN_DIR",), RUN_DIR="results/cpu")
"""Parameters of notebook 00: the folder of a run whose verdicts it shows."""


def whole(params: Parameters) -> Any:
    """The parameters of any notebook among the defaults of all others, as :data:`ScaleParameters`."""
    return params if isinstance(params, ScaleParameters) else ScaleParameters(**params.model_dump())


def _lists_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """``-p BUDGETS "[5]"`` reaches a notebook through Papermill as the string ``"[5]"``."""
    read = dict(values)
    for name, value in values.items():
        field = ScaleParameters.model_fields.get(name)
        if field and get_origin(field.annotation) is list and isinstance(value, str) and "[" in value:
            try:
                read[name] = strict_yaml.read(value)
            except ValueError:
                continue  # left as it is, to be refused as no list
    return read


def _complaints(p: Any) -> Iterator[str]:
    """What does not go together: within a section, then between them. Of a tiny ladder only if it is asked for."""
    for section in SECTIONS:
        if section is not TinyLadder or p.LADDER == "tiny":
            values = section.model_construct(**_fields(p, section))
            yield from values.complaints(section.flat_name)
    if p.TASK not in tasks.names():
        yield f"TASK must be one of {', '.join(tasks.names())}, got {shown(p.TASK)}"
    if p.METHOD not in methods.names():
        yield f"METHOD must be one of {', '.join(methods.names())}, got {shown(p.METHOD)}"
    if p.LADDER == "tiny" and (complaint := layer_complaint(p, p.TINY_LAYERS)):
        yield complaint


def layer_complaint(params: Any, depth: int) -> str | None:
    """What is wrong with MEASURE_LAYERS for a model of ``depth`` blocks: see :data:`replicate.models.hooks.FINAL`."""
    if outside := [k for k in params.MEASURE_LAYERS if not -1 <= k <= depth]:
        expected = (
            f"MEASURE_LAYERS must be 0 to {depth} or -1, the final state (the model has {depth} blocks)"
        )
        return f"{expected}, got {shown(outside)}"
    if -1 not in params.MEASURE_LAYERS:
        return f"MEASURE_LAYERS must contain -1, at which scores are read, got {shown(params.MEASURE_LAYERS)}"
    return None


def load(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ScaleParameters:
    """Reads and checks a YAML file of ``params/``; ``overrides`` win over the file.

    Raises ``ValueError`` with one line that names the file and the key at fault.
    """
    where = f"{path} with -p" if overrides else str(path)
    return ScaleParameters.parse({**read_mapping(path), **(overrides or {})}, where=where)


def read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """What a YAML file says, unchecked but for being a mapping; ``ValueError`` with one line that names the file."""
    try:
        values = strict_yaml.read(_text(Path(path)))
    except ValueError as error:
        raise ValueError(located(str(path), str(error))) from None
    if not isinstance(values, dict):
        got = f"expected a flat mapping of parameters (KEY: value), got {shown(values)}"
        raise ValueError(located(str(path), got))
    return values


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
    return f"the nearest known: {', '.join(near)}" if near else "`replicate params` lists all that are known"


def _remedy(error: Any) -> str:
    """How a value of the right meaning and the wrong type is written."""
    kind, value = error["type"], error["input"]
    if kind == "list_type":
        return f"; write [{value}]" if type(value) is int else "; write [5, 10]"
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
