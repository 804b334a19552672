"""The questions of a notebook as its TOML file declares them, and the numbers that a reader may move."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

from replicate.checks import one_of
from replicate.report.rows import VOCABULARY, Kind, Polarity
from replicate.statistics.agreement import worst_z_bound

FOLDER = Path(__file__).parent
_Z = re.compile(r"z\((\d+)\)")


@dataclass(frozen=True)
class Question:
    """One row before it is measured; see the field of the same name of a ``Verdict``.

    ``claim``, ``quantity`` and the bounds may hold ``{names}``, which the notebook fills. ``below`` and ``above`` are
    numbers, or ``z(k)``: what the worst of k |z| of true claims exceeds once in ten thousand runs. ``routes`` says by
    which independent routes a statement of the paper was computed; ``rejects`` which rows a control gives teeth.
    """

    key: str
    whose: Kind
    where: str
    claim: str
    quantity: str
    below: float | int | str | None = None
    above: float | int | str | None = None
    polarity: Polarity = "supports"
    if_true: str = "reproduced"
    if_false: str = "not reproduced"
    statement: str | None = None
    routes: str | None = None
    rejects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a word outside its vocabulary and for a row that lacks what its kind needs."""
        one_of("whose", self.whose, get_args(Kind))
        one_of("polarity", self.polarity, get_args(Polarity))
        for word in (self.if_true, self.if_false):
            one_of("if_true, if_false", word, VOCABULARY)
        needs = {"paper": ("statement", "routes"), "control": ("rejects",)}.get(self.whose, ())
        for name in needs:
            if not getattr(self, name):
                raise ValueError(f"{self.key}: expected {name}= in a row of kind {self.whose}, got none")
        if self.statement and self.statement not in statements():
            raise ValueError(
                f"{self.key}: expected a statement out of statements.toml, got {self.statement!r}"
            )

    def bounds(self, filled: Mapping[str, Any]) -> dict[str, float | None]:
        """``below`` and ``above`` as numbers."""
        return {name: _bound(getattr(self, name), filled) for name in ("below", "above")}


@dataclass(frozen=True)
class Knob:
    """A number that a reader may move: its default, the range that is checked, and what it is."""

    name: str
    default: float | int
    low: float | int
    high: float | int
    about: str

    @property
    def line(self) -> str:
        """The line of the notebook's parameters cell."""
        return f"{self.name} = {self.default!r}  # {self.about}: {self.low} to {self.high}"

    def checked(self, value: Any, *, where: str) -> float | int:
        """``value`` if it is a number of the knob's kind within its range; ``ValueError`` with one line otherwise."""
        whole = isinstance(self.default, int)
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not self.low <= value <= self.high:
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"{where}: {self.name} ({self.about}): expected {kind} from {self.low} to {self.high}, got {value!r}"
            )
        return value if whole else float(value)


@dataclass(frozen=True)
class Ledger:
    """What one notebook asks and what a reader may move."""

    rows: dict[str, Question] = field(default_factory=dict)
    knobs: dict[str, Knob] = field(default_factory=dict)


@cache
def ledger(notebook: str) -> Ledger:
    """The ledger of ``notebook`` (its file's name without the ending); an empty one where it declares none.

    Raises ``ValueError`` naming the file for one that cannot be read, and for a control that rejects no row of it.
    """
    path = FOLDER / f"{notebook}.toml"
    if not path.is_file():
        return Ledger()
    try:
        data = tomllib.loads(path.read_text())
        rows = {key: Question(key, **_lists(row)) for key, row in data.get("rows", {}).items()}
        knobs = {name: Knob(name, **knob) for name, knob in data.get("knobs", {}).items()}
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    unknown = {key for row in rows.values() for key in row.rejects} - set(rows)
    if unknown:
        raise ValueError(f"{path.name}: expected rejects= to name rows, got {', '.join(sorted(unknown))}")
    return Ledger(rows, knobs)


@cache
def statements() -> dict[str, dict[str, str]]:
    """The paper's statements by key: ``where`` it stands and its ``text`` in our words."""
    return tomllib.loads((FOLDER / "statements.toml").read_text())


def _lists(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _bound(bound: float | int | str | None, filled: Mapping[str, Any]) -> float | None:
    if not isinstance(bound, str):
        return None if bound is None else float(bound)
    text = bound.format(**filled)
    found = _Z.fullmatch(text)
    return worst_z_bound(int(found[1])) if found else float(text)
