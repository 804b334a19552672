"""What the verdict tables of all notebooks say together: the map of claims, and how many of whom came out how."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import get_args

from replicate.report import markdown
from replicate.report.rows import VOCABULARY, WHOSE, Kind, Verdict, asked_criterion, number
from replicate.report.verdicts import Verdicts


def load(folder: str | os.PathLike) -> list[Verdicts]:
    """The verdict tables saved in ``folder``, in the order of their notebooks."""
    tables = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            data = json.loads(path.read_text())
            rows = [Verdict(**row) for row in data["rows"]]
            tables.append(Verdicts(data["notebook"], None, rows))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: damaged verdicts, run the notebook again ({error})") from None
    return tables


def claims_map(
    tables: list[Verdicts],
    *,
    only: Collection[str] = VOCABULARY,
    kinds: Collection[Kind] = ("paper", "background", "ours"),
    notebooks: str = "",
    seen: Mapping[tuple[str, str], object] | None = None,
    routes: bool = False,
) -> str:
    """A Markdown table of the claims of these ``kinds`` whose verdict is among ``only``, one row each.

    ``notebooks`` is the path from the page that will hold the table to the folder of the notebooks; the last column
    links there, in JupyterLab to the cell. ``seen`` says, by notebook and claim, what other runs found; with it there
    is one more column, and with ``routes`` one that says by which independent routes a number was had. Raises
    ``ValueError`` for a verdict outside the vocabulary.
    """
    if unknown := set(only) - set(VOCABULARY):
        raise ValueError(f"only: expected verdicts out of {VOCABULARY}, got {sorted(unknown)}")
    extra = ("elsewhere",) * (seen is not None) + ("routes that met",) * routes
    head = markdown.head(
        "where", "claim", "verdict", "value", "criterion", *extra, "measured on", "notebook, cell"
    )
    return head + "\n".join(
        _map_row(
            table,
            row,
            notebooks,
            (
                *(() if seen is None else (str(seen.get((table.notebook, row.claim), "")),)),
                *_routes(row, routes),
            ),
        )
        for table in tables
        for row in _claims(table, kinds)
        if row.verdict in only
    )


def _map_row(table: Verdicts, r: Verdict, notebooks: str, extra: tuple[str, ...]) -> str:
    verdict = f"**{r.verdict}**"
    where = link(table, r, notebooks)
    return markdown.row(r.where, r.claim, verdict, _asked(r), asked_criterion(r), *extra, r.source, where)


def _routes(row: Verdict, wanted: bool) -> tuple[str, ...]:
    return (row.routes or "",) if wanted else ()


def whose(tables: list[Verdicts]) -> str:
    """A Markdown table of the verdicts counted by whose claim it is, the paper's first."""
    rows = [
        (WHOSE[kind], _tally(r for t in tables for r in _claims(t, (kind,))))
        for kind in get_args(Kind)
        if kind != "control"
    ]
    return markdown.head("whose", *VOCABULARY, numbers=len(VOCABULARY)) + _numbers(rows)


def _tally(rows) -> list[int]:
    found = [row.verdict for row in rows]
    return [found.count(word) for word in VOCABULARY]


def _numbers(rows) -> str:
    return "\n".join(markdown.row(name, *(str(n) if n else "" for n in numbers)) for name, numbers in rows)


def _claims(table: Verdicts, kinds: Collection[Kind]) -> Iterator[Verdict]:
    return (row for row in table if row.kind in kinds)


def _asked(r: Verdict) -> str:
    return f"{r.quantity}: {number(r)}" if r.criterion != "-" else r.quantity


def link(table: Verdicts, r: Verdict, notebooks: str) -> str:
    """Where the verdict stands: the notebook under ``notebooks`` and its cell."""
    target = f"{notebooks}/{table.notebook}.ipynb" if notebooks else f"{table.notebook}.ipynb"
    if r.cell is None:
        return f"[{table.notebook}]({target})"
    identity = _cell_ids(table.notebook).get(r.cell)
    return f"[{table.notebook}]({target}{f'#cell-id={identity}' if identity else ''}), [{r.cell}]"


@cache
def _cell_ids(notebook: str) -> dict[int, str]:
    """The ids of a notebook's code cells by their number; empty if this source tree has no such notebook."""
    path = Path(__file__).parents[3] / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        return {}
    cells = json.loads(path.read_text())["cells"]
    return dict(enumerate((cell["id"] for cell in cells if cell["cell_type"] == "code"), start=1))
