"""Verdicts on the paper's claims, written by code from measured numbers.

A row whose claim begins with ``...`` is the control of the row above it: a wrong estimator that the same check rejects.
Controls stand in the notebook's table and stay out of the map of claims.

A notebook collects one :class:`Verdict` a claim in a :class:`Verdicts` table, shows the table as its last output
and saves it as JSON. The map of claims in notebook 00 and the table in the README are made from those files.

The table that a reader sees prints a number only when asked to (``show=...``), because strict nbval compares it
between machines; the file always holds the number in full.
"""

import json
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

VOCABULARY = (
    "reproduced",
    "reproduced with a repair",
    "true but vacuous here",
    "not reproduced",
    "not testable here",
)


@dataclass(frozen=True)
class Verdict:
    """One claim, the quantity that tests it, what was measured, what was asked of it, and the verdict."""

    claim: str
    where: str
    quantity: str
    value: float | None
    criterion: str
    passed: bool
    verdict: str
    source: str
    shown: str = ""


@dataclass(repr=False)
class Verdicts:
    """The verdict table of one notebook; ``source`` says what was measured (toy MDPs, which ladder, ...)."""

    notebook: str
    source: str
    rows: list[Verdict] = field(default_factory=list)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.rows)

    def check(
        self,
        claim: str,
        *,
        where: str,
        quantity: str,
        value: float,
        below: float | None = None,
        above: float | None = None,
        show: str = "",
        if_true: str = "reproduced",
        if_false: str = "not reproduced",
        source: str | None = None,
    ) -> Verdict:
        """Judges ``claim`` by whether ``above < value < below`` (either side may be left out).

        ``where`` names the equation, proposition, figure or audit. ``show`` is a format such as ``"+.1f"``; give it
        only if the number printed is the same on every machine. A value that is not finite never passes.
        """
        if below is None and above is None:
            raise ValueError(f"check of {claim!r}: expected a bound below= or above=, got neither")
        for word in (if_true, if_false):
            if word not in VOCABULARY:
                raise ValueError(f"verdict: expected one of {VOCABULARY}, got {word!r}")
        value = float(value)
        passed = (
            math.isfinite(value) and (below is None or value < below) and (above is None or value > above)
        )
        criterion = " and ".join(
            f"{sign} {bound:g}" for sign, bound in ((">", above), ("<", below)) if bound is not None
        )
        row = Verdict(
            claim=claim,
            where=where,
            quantity=quantity,
            value=value if math.isfinite(value) else None,
            criterion=criterion,
            passed=passed,
            verdict=if_true if passed else if_false,
            source=source or self.source,
            shown=format(value, show) if show else "",
        )
        self.rows.append(row)
        return row

    def untestable(self, claim: str, *, where: str, because: str, source: str | None = None) -> Verdict:
        """Records a claim that these parameters cannot test, and the reason."""
        row = Verdict(claim, where, because, None, "-", True, "not testable here", source or self.source)
        self.rows.append(row)
        return row

    @property
    def failed(self) -> list[Verdict]:
        """The rows whose measured number misses its criterion."""
        return [row for row in self.rows if not row.passed]

    def __repr__(self) -> str:
        """Short, and without digits: nbval compares it between machines."""
        return f"<verdicts of {self.notebook}: {len(self.rows)} rows>"

    def _repr_markdown_(self) -> str:
        head = "| claim | where | quantity | criterion | met | verdict |\n|---|---|---|---|---|---|\n"
        return head + "\n".join(_row(r) for r in self.rows)

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes ``folder/<notebook>.json`` in one step and returns its path."""
        path = Path(folder) / f"{self.notebook}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        rows = [asdict(row) for row in self.rows]
        part.write_text(
            json.dumps({"notebook": self.notebook, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
        )
        os.replace(part, path)
        return path


def load(folder: str | os.PathLike) -> list[Verdicts]:
    """The verdict tables saved in ``folder``, in the order of their notebooks."""
    tables = []
    for path in sorted(Path(folder).glob("*.json")):
        data = json.loads(path.read_text())
        rows = [Verdict(**row) for row in data["rows"]]
        tables.append(Verdicts(data["notebook"], rows[0].source if rows else "", rows))
    return tables


def claims_map(tables: list[Verdicts], *, only: Collection[str] = VOCABULARY) -> str:
    """A Markdown table of the claims whose verdict is among ``only``, one row each, with the notebook and the source.

    Controls are left out. Raises ``ValueError`` for a verdict outside the vocabulary.
    """
    if unknown := set(only) - set(VOCABULARY):
        raise ValueError(f"only: expected verdicts out of {VOCABULARY}, got {sorted(unknown)}")
    head = "| where | claim | verdict | measured on | notebook |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        _cells(r.where, r.claim, f"**{r.verdict}**", r.source, table.notebook)
        for table in tables
        for r in _claims(table)
        if r.verdict in only
    )


def counts(tables: list[Verdicts]) -> str:
    """A Markdown table of how many claims of each notebook got which verdict, controls left out, and the sums."""
    rows = [(t.notebook, [sum(r.verdict == word for r in _claims(t)) for word in VOCABULARY]) for t in tables]
    rows.append(("all", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    head = _cells("notebook", *VOCABULARY) + "\n|---" + "|--:" * len(VOCABULARY) + "|\n"
    return head + "\n".join(_cells(name, *(str(n) if n else "" for n in numbers)) for name, numbers in rows)


def _claims(table: Verdicts) -> Iterator[Verdict]:
    return (row for row in table if not row.claim.startswith("..."))


def _row(r: Verdict) -> str:
    quantity = f"{r.quantity} = {r.shown}" if r.shown else r.quantity
    met = "-" if r.value is None and r.passed else "PASS" if r.passed else "FAIL"
    return _cells(r.claim, r.where, quantity, r.criterion, met, f"**{r.verdict}**")


def _cells(*cells: str) -> str:
    # A bar inside a cell, as in |z|, would end it.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
