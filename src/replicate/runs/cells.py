"""Cells of a study: the same rungs of its ladders once more, each time under other settings of RL.

A study file with ``CELLS`` names what moves. ``CELLS`` is a list of cells, each with a ``NAME``, the ``FACTOR`` it
moves and to which ``LEVEL`` (both may be left out), and the parameters in which it differs from the file. With
``FACTORS``, a list of factors with a ``NAME`` and the parameters at ``LOW`` and ``HIGH``, and ``GENERATORS``, further
cells are the runs of a two-level fraction: the first factors take all combinations, and each further one is the product
of those that its generator names by their letters, A for the first. ``RATE`` among a cell's parameters multiplies the
learning rate, whichever it is. ``RUNGS_OF_EACH`` rungs of each ladder are taken (all if it is left out), evenly spaced
in the ranks of J_0 or, with ``RUNGS_BY: rewards``, in J_0 itself.

In every cell RL is run. ``ALSO`` names experiments that are run beside it (in a cell called ``base``, if it says
nothing: the measurements), ``ONLY`` which of the chosen rungs the cell runs on, from 0 in the order of steps.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replicate.checks import one_of
from replicate.ladder import selection
from replicate.runs import jobs, paths
from replicate.runs.params import ScaleParameters, located
from replicate.runs.strict_yaml import shown
from replicate.runs.study import Entry, Study

BASE = "base"
_RATE = "RATE"
_SAID = ("NAME", "FACTOR", "LEVEL", "ALSO", "ONLY", _RATE)
_MEASURED = ("measure", "forecast")
_LETTERS = "ABCDEFGHJKLMNOP"  # I is the identity


@dataclass(frozen=True)
class Cell:
    """Settings of RL: the ``group`` is "one-factor" or "factorial"; ``rate`` multiplies the learning rate."""

    name: str
    group: str
    factor: str = ""
    level: str = ""
    rate: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    only: tuple[int, ...] = ()

    def apply(self, params: ScaleParameters, *, where: str) -> ScaleParameters:
        """``params`` with this cell's changes, in a run folder of its own; ``ValueError`` names the key at fault."""
        values = params.model_dump() | dict(self.changes)
        values["LEARNING_RATE"] *= self.rate
        values["RUN_DIR"] = f"{params.RUN_DIR}/{self.name.replace(' ', '-')}"
        return ScaleParameters.parse(values, where=f"{where}, cell {self.name}")


def of(study: Study) -> list[Cell]:
    """The cells of a study file, the fraction's last; ``ValueError`` names the one at fault."""
    found = [_listed(study.path, item) for item in study.cells]
    if study.factors:
        found += _fraction(study.path, study.factors, study.generators)
    names = [cell.name for cell in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(located(str(study.path), f"CELLS: two cells named {twice[0]}"))
    return found


def _listed(path: Path, item: Any) -> Cell:
    if not isinstance(item, Mapping) or not isinstance(item.get("NAME"), str):
        raise ValueError(located(str(path), f"CELLS: expected mappings with a NAME, got {shown(item)}"))
    changes = {k: v for k, v in item.items() if k not in _SAID}
    also, only = item.get("ALSO", _MEASURED if item["NAME"] == BASE else []), item.get("ONLY", [])
    for experiment in also:
        one_of(f"{path}: cell {item['NAME']}: ALSO", experiment, tuple(jobs.MODULES))
    said = {"factor": str(item.get("FACTOR", "")), "level": str(item.get("LEVEL", ""))}
    parts = {
        "rate": float(item.get(_RATE, 1.0)),
        "changes": changes,
        "also": tuple(also),
        "only": tuple(only),
    }
    return Cell(item["NAME"], "one-factor", **said, **parts)


def _fraction(path: Path, factors: Sequence[Any], generators: Mapping[str, str]) -> Iterator[Cell]:
    """The runs of the fraction; a run's name has the letters of the factors that are high, (1) where none is."""
    for factor in factors:
        if not isinstance(factor, Mapping) or not {"NAME", "LOW", "HIGH"} <= set(factor):
            expected = "mappings with NAME, LOW and HIGH"
            raise ValueError(located(str(path), f"FACTORS: expected {expected}, got {shown(factor)}"))
    for signs in signs_of(len(factors), generators):
        high = "".join(letter for letter, sign in signs.items() if sign > 0)
        changes = {}
        for factor, sign in zip(factors, signs.values(), strict=True):
            changes |= factor["HIGH" if sign > 0 else "LOW"]
        rate = float(changes.pop(_RATE, 1.0))
        yield Cell(f"f {high or '(1)'}", "factorial", level=high, rate=rate, changes=changes)


def signs_of(factors: int, generators: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """The runs of the fraction, by letter -1 or 1; ``ValueError`` for a generator that names what is not free."""
    letters = _LETTERS[:factors]
    free = [letter for letter in letters if letter not in generators]
    for letter, word in generators.items():
        if letter not in letters or not set(word) <= set(free):
            raise ValueError(f"GENERATORS: expected letters of free factors, got {letter}: {word}")
    for levels in itertools.product((-1, 1), repeat=len(free)):
        signs = dict(zip(free, levels, strict=True))
        signs |= {letter: math.prod(signs[free_] for free_ in word) for letter, word in generators.items()}
        yield {letter: signs[letter] for letter in letters}


def entries(study: Study, parents: Sequence[Entry]) -> list[Entry]:
    """Every cell on every ladder of ``parents``, trained if they are not there."""
    found = []
    for parent in parents:
        params = _chosen(study, parent)
        for cell in of(study):
            own = cell.apply(params, where=f"{study.path}, ladder {parent.name}")
            if cell.only:
                own = own.model_copy(update={"LADDER": _some(own, cell.only)})
            found.append(Entry(f"{parent.name}, {cell.name}", parent.role, own, (*cell.also, "rl")))
    return found


def _some(params: ScaleParameters, only: Sequence[int]) -> str:
    """The folder of some of a ladder's rungs."""
    folder = f"{params.LADDER}-at-{'-'.join(map(str, only))}"
    selection.some(jobs.ladder(params), paths.resolve(Path(folder)), only)
    return folder


def _chosen(study: Study, parent: Entry) -> ScaleParameters:
    """The parent's parameters with the ladder of its chosen rungs."""
    if study.rungs is None:
        return parent.params
    ladder = jobs.ladder(parent.params)
    name = f"{ladder.checkpoints[0].where.parent.name}-{study.rungs}-by-{study.rungs_by}"
    folder = Path(parent.params.LADDER_DIR) / name
    prompts = jobs.measured(parent.params, ladder.checkpoints[0]).to("cpu")
    selection.spread_out(ladder, paths.resolve(folder), prompts, count=study.rungs, by=study.rungs_by)
    return parent.params.model_copy(update={"LADDER": str(folder)})
