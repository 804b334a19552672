"""What the verdicts were on other ladders and under other kernels: the range of each number, and every disagreement.

``results/elsewhere/`` holds the verdict tables of the main job at several seeds (another seed trains other ladders) and
under three settings of the kernels (which give other weights at one seed, as another machine would).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from replicate.report import claims
from replicate.report.rows import Verdict
from replicate.report.verdicts import Verdicts

Key = tuple[str, str]
"""A claim: the notebook's name and the claim's wording."""


@dataclass(frozen=True)
class Seen:
    """One claim over several runs: the smallest and largest value (None if no run has a number), and its verdicts."""

    runs: int
    low: float | None
    high: float | None
    verdicts: frozenset[str]

    def __str__(self) -> str:
        numbers = "" if self.low is None else f"`{self.low:.3g}` to `{self.high:.3g}`"
        return f"{numbers} ({self.runs})".strip()


def load(folder: Path) -> dict[str, list[Verdicts]]:
    """The verdict tables of each run under ``folder``, by the run's name; empty if there is no such folder."""
    return {path.parent.name: claims.load(path) for path in sorted(folder.glob("*/verdicts"))}


def ranges(runs: Iterable[list[Verdicts]]) -> dict[Key, Seen]:
    """Each claim's :class:`Seen` over ``runs``."""
    rows: dict[Key, list[Verdict]] = {}
    for tables in runs:
        for table in tables:
            for row in table:
                rows.setdefault((table.notebook, row.claim), []).append(row)
    return {key: _seen(found) for key, found in rows.items()}


def _seen(rows: list[Verdict]) -> Seen:
    values = [row.value for row in rows if row.value is not None]
    low, high = (min(values), max(values)) if values else (None, None)
    return Seen(len(rows), low, high, frozenset(row.verdict for row in rows))


def disagreements(published: list[Verdicts], runs: Mapping[str, list[Verdicts]]) -> list[str]:
    """One line for every claim of ``published`` that some run judges otherwise, controls that fail there included."""
    return [
        f"{name}: {table.notebook}: {row.claim!r}: {other.verdict} there, {row.verdict} published"
        for table in published
        for row in table
        for name, tables in runs.items()
        for other in _same(tables, table.notebook, row.claim)
        if (other.verdict, other.passed) != (row.verdict, row.passed)
    ]


def _same(tables: list[Verdicts], notebook: str, claim: str) -> list[Verdict]:
    return [row for table in tables if table.notebook == notebook for row in table if row.claim == claim]
