"""What is generated from the sections of parameters: ``params/smoke.yaml`` and the notebooks' parameter cells."""

import json
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from replicate.files import write_text
from replicate.report.ledger.questions import Knob, ledger
from replicate.runs.params import (
    SECTIONS,
    LanguageParameters,
    MapParameters,
    Parameters,
    ScaleParameters,
    ToyParameters,
)
from replicate.runs.paths import notebook_files

_CELL = "# The small regime. A run replaces these: papermill ... -f params/cpu.yaml"
_FILE = "# The small regime: the defaults of the notebooks, and what their tests execute. Generated: replicate params"
_WIDTH = 110


def schema_of(notebook: str) -> type[Parameters]:
    """The parameter schema of a notebook, by the number its name starts with."""
    number = int(notebook[:2])
    if number == 0:
        return MapParameters
    if number <= 4:
        return ToyParameters
    return LanguageParameters if number <= 8 else ScaleParameters


def stale(suite: Path, *, write: bool = False) -> list[Path]:
    """The generated files of the suite that are not what the sections say; with ``write`` they are made anew."""
    if missing := [name for name in ("params", "notebooks") if not (suite / name).is_dir()]:
        where = f"{suite} has no {' and no '.join(missing)}"
        raise ValueError(f"params: expected the suite's folder, {where}; set REPLICATE_HOME")
    wanted = {suite / "params" / "smoke.yaml": smoke_yaml()}
    for path in notebook_files(suite / "notebooks"):
        wanted[path] = _with_cell(
            path, parameter_cell(schema_of(path.stem), ledger(path.stem).knobs.values())
        )
    old = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in old if write else ():
        write_text(path, wanted[path])
    return old


def smoke_yaml() -> str:
    """The file of the small regime: every parameter with its default, by section."""
    parts = [_FILE, *_groups(ScaleParameters(), "{}: {}".format, _in_yaml)]
    return "\n\n".join(parts) + "\n"


def parameter_cell(schema: type[Parameters], knobs: Iterable[Knob] = ()) -> str:
    """The source of a notebook's parameter cell: the schema's defaults as Python literals, then its knobs."""
    defaults = schema()
    if schema is ScaleParameters:
        return "\n".join([_CELL, *_groups(defaults, "{} = {}".format, _in_python)])
    lines = [f"{name} = {_in_python(value)}" for name, value in defaults.model_dump().items()]
    return "\n".join([*lines, *(knob.line for knob in knobs)])


def _groups(values: Any, line: Callable[[str, str], str], say: Callable[[Any], str]) -> Iterator[str]:
    """A block of lines for each section, its comment first; a shared parameter stands in the first that has it."""
    seen: set[str] = set()
    for section in SECTIONS:
        names = [name for name in map(section.flat_name, section.model_fields) if name not in seen]
        seen.update(names)
        comment = _wrapped(section.about)
        yield "\n".join([*comment, *(line(name, say(getattr(values, name))) for name in names)])


def _wrapped(text: str) -> list[str]:
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _in_yaml(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _in_python(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else repr(value)


def _number(value: float) -> str:
    """A float as both YAML and Python read it: below a hundredth with an exponent, which needs a point in YAML."""
    if value == 0 or abs(value) >= 0.01:
        return repr(value)
    mantissa, exponent = f"{value:.16e}".split("e")
    return f"{float(mantissa)}e{int(exponent)}"


def _with_cell(path: Path, source: str) -> str:
    """The notebook's text with ``source`` in its parameter cell and nothing else changed."""
    if find_spec("nbformat") is None:
        raise ValueError(
            "params: nbformat is not installed, which parameter cells need; pip install nbformat"
        )
    import nbformat

    text = path.read_text()
    book = nbformat.reads(text, 4)
    cells = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path}: expected exactly one cell tagged parameters, got {len(cells)}")
    if cells[0].source == source:
        return text
    cells[0].source = source
    return nbformat.writes(book) + "\n"
