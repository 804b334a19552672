"""Verdicts on claims, written by code from measured numbers.

A notebook collects one :class:`Verdict` a claim in a :class:`Verdicts` table, shows the table as its last output and
saves it as JSON. The map of claims in notebook 00, ``CLAIMS.md`` and the README's tables are made from those files.

Every row says whose claim it is (``kind``):

- ``paper``: a statement of the paper under audit;
- ``background``: textbook knowledge that the argument rests on;
- ``ours``: a repair, an extension, an audit or a counterexample of this project;
- ``control``: a wrong estimator, or a broken setting, that the check above it must reject. Controls stand in the
  notebook's table and stay out of the map; a failed one means that a check has no teeth, and fails the notebook.

and in which direction its number speaks (``polarity``): a row of :meth:`Verdicts.check` supports its claim when the
criterion is met, one of :meth:`Verdicts.refutes` speaks against it, one of :meth:`Verdicts.empties` shows that it holds
and says nothing.

The number that was measured is always shown, between backquotes. Strict nbval compares the tables between machines and
would stumble over its last digits; ``notebooks/sanitize.cfg`` tells it to pass over numbers in backquotes.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from replicate.checks import one_of
from replicate.files import write_text
from replicate.report import markdown
from replicate.report.rows import VOCABULARY, Kind, Polarity, Verdict, criterion, number, table_row

if TYPE_CHECKING:
    from replicate.statistics.over_ladders import OverLadders


class ControlFailed(AssertionError):
    """A check accepted what it must reject: the rows beside it prove nothing."""


@dataclass(repr=False)
class Verdicts:
    """The verdict table of one notebook. ``source`` says what most rows measured; a row may name its own.

    ``shift`` is by how much the numbers of code cells run ahead of those of the committed notebook: Papermill adds a
    cell of its own when it is given parameters.
    """

    notebook: str
    source: str | None
    rows: list[Verdict] = field(default_factory=list)
    shift: int = 0

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.rows)

    def check(
        self,
        claim: str,
        *,
        kind: str,
        where: str,
        quantity: str,
        value: float,
        below: float | None = None,
        above: float | None = None,
        if_true: str = "reproduced",
        if_false: str = "not reproduced",
        source: str | None = None,
        statement: str | None = None,
    ) -> None:
        """Judges ``claim`` by whether ``above < value < below`` (either side may be left out).

        ``kind`` is whose claim it is, ``where`` names the equation, proposition, figure or audit. A value that is not
        finite never passes. Raises ``ValueError`` without a bound, without a source, and for a verdict outside the
        vocabulary.
        """
        if kind == "control":
            raise ValueError(
                f"check of {claim!r}: expected paper, background or ours, got a control; use control()"
            )
        words = (if_true, if_false)
        self.judge(claim, kind, where, quantity, value, below, above, words, source, statement=statement)

    def decide(
        self,
        claim: str,
        found: "OverLadders",
        *,
        kind: str,
        where: str,
        quantity: str,
        above: float = 0.0,
        corrected: float = 0.0,
        if_true: str = "reproduced",
        source: str | None = None,
        statement: str | None = None,
    ) -> None:
        """Judges ``claim``, that a number exceeds ``above``, by its interval over ladders: the lower end must.

        An interval that holds ``above`` decides nothing, and the row says so: not testable here. Neither does one of
        many: ``corrected`` is its p-value after a correction for their number, above 0.05 too large.
        """
        said = f"{quantity}: {found.text()}"
        if found.low <= above <= found.high or corrected > 0.05:
            many = f", p = {corrected:.2g} among all questions" if corrected > 0.05 else ""
            because = f"undecided at {above:g}; {said}{many}"
            self.untestable(
                claim, kind=kind, where=where, because=because, source=source, statement=statement
            )
            return
        how = {"kind": kind, "where": where, "if_true": if_true, "source": source, "statement": statement}
        self.check(claim, quantity=f"{said}; lower end", value=found.low, above=above, **how)

    def control(
        self,
        claim: str,
        *,
        where: str,
        quantity: str,
        value: float,
        below: float | None = None,
        above: float | None = None,
        source: str | None = None,
    ) -> None:
        """A wrong answer that the check above must reject; the bounds say how clearly.

        Missing them fails the notebook, see :meth:`require_controls`.
        """
        self.judge(claim, "control", where, quantity, value, below, above, ("-", "-"), source)

    def refutes(
        self,
        claim: str,
        *,
        kind: str = "paper",
        where: str,
        quantity: str,
        value: float,
        below: float | None = None,
        above: float | None = None,
        source: str | None = None,
        statement: str | None = None,
    ) -> None:
        """A measurement that speaks *against* ``claim`` if ``above < value < below``: then it is not reproduced."""
        words = ("not reproduced", "reproduced")
        how = {"polarity": "refutes", "statement": statement}
        self.judge(claim, kind, where, quantity, value, below, above, words, source, **how)

    def empties(
        self,
        claim: str,
        *,
        kind: str = "paper",
        where: str,
        quantity: str,
        value: float,
        below: float | None = None,
        above: float | None = None,
        source: str | None = None,
        statement: str | None = None,
    ) -> None:
        """A measurement that shows, if ``above < value < below``, that ``claim`` is true and says nothing here."""
        words = ("true but vacuous here", "reproduced")
        how = {"polarity": "empties", "statement": statement}
        self.judge(claim, kind, where, quantity, value, below, above, words, source, **how)

    def untestable(
        self,
        claim: str,
        *,
        kind: str,
        where: str,
        because: str,
        source: str | None = None,
        statement: str | None = None,
        routes: str | None = None,
        key: str | None = None,
    ) -> None:
        """Records a claim that these parameters cannot test, and the reason."""
        one_of("kind", kind, get_args(Kind))
        row = Verdict(
            claim=claim,
            kind=kind,
            where=where,
            quantity=because,
            value=None,
            criterion="-",
            passed=True,
            verdict="not testable here",
            source=self._source(claim, source),
            cell=self._cell(),
            statement=statement,
            routes=routes,
            key=key,
        )
        self.rows.append(row)

    def judge(
        self,
        claim: str,
        kind: str,
        where: str,
        quantity: str,
        value: float,
        below: float | None,
        above: float | None,
        words: tuple[str, str],
        source: str | None,
        *,
        polarity: Polarity = "supports",
        statement: str | None = None,
        routes: str | None = None,
        key: str | None = None,
    ) -> None:
        """A row of any kind, with the two verdicts ``words`` for a criterion that is met and one that is missed."""
        if below is None and above is None:
            raise ValueError(f"check of {claim!r}: expected a bound below= or above=, got neither")
        one_of("kind", kind, get_args(Kind))
        for word in () if kind == "control" else words:
            one_of("verdict", word, VOCABULARY)
        # Plain Python numbers: a table is saved as JSON, and tensors or numpy's numbers are welcome.
        value, below, above = (None if number is None else float(number) for number in (value, below, above))
        passed = (
            math.isfinite(value) and (below is None or value < below) and (above is None or value > above)
        )
        row = Verdict(
            claim=claim,
            kind=kind,
            where=where,
            quantity=quantity,
            value=value if math.isfinite(value) else None,
            criterion=criterion(above, below),
            passed=passed,
            verdict=words[0] if passed else words[1],
            source=self._source(claim, source),
            polarity=polarity,
            cell=self._cell(),
            statement=statement,
            routes=routes,
            key=key,
        )
        self.rows.append(row)

    def _source(self, claim: str, source: str | None) -> str:
        if found := source or self.source:
            return found
        raise ValueError(f"source: {claim!r} does not say what was measured; give source=")

    def _cell(self) -> int | None:
        number = cell_number()
        return None if number is None else number - self.shift

    @property
    def failed(self) -> list[Verdict]:
        """The rows whose measured number misses its criterion."""
        return [row for row in self.rows if not row.passed]

    def require_controls(self) -> None:
        """Raises :class:`ControlFailed` naming every control that missed its criterion."""
        toothless = [row for row in self.failed if row.kind == "control"]
        if toothless:
            named = "; ".join(f"{row.claim!r}: {number(row)}, expected {row.criterion}" for row in toothless)
            raise ControlFailed(f"{self.notebook}: {len(toothless)} control(s) failed: {named}")

    def __repr__(self) -> str:
        """Short, and without digits: nbval compares it between machines."""
        return f"<verdicts of {self.notebook}: {len(self.rows)} rows>"

    def _repr_markdown_(self) -> str:
        head = markdown.head("whose", "claim", "where", "quantity", "value", "criterion", "met", "verdict")
        return head + "\n".join(table_row(r) for r in self.rows)

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes ``folder/<notebook>.json`` in one step and returns its path."""
        path = Path(folder) / f"{self.notebook}.json"
        rows = [asdict(row) for row in self.rows]
        write_text(
            path, json.dumps({"notebook": self.notebook, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
        )
        return path


def cell_number() -> int | None:
    """The number of the code cell that is being executed; None outside a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return None if shell is None else shell.execution_count
