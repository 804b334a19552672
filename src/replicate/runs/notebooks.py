"""What a notebook needs at its start and its end, and executing all of them with Papermill.

A notebook defines almost nothing itself. Its first code cell holds its parameters, the second calls :func:`start`,
and its last one shows ``run.finish()``, the verdict table.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from replicate.report import figures
from replicate.report.claims import Verdicts
from replicate.runs import paths
from replicate.runs.params import MapParameters, Parameters, ToyParameters

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Names that IPython itself puts beside the user's.
_IPYTHON = {"In", "Out", "get_ipython", "exit", "quit", "open"}


def schema_of(notebook: str) -> type[Parameters]:
    """The parameter schema of a notebook, by the number its name starts with."""
    number = int(notebook[:2])
    if number == 0:
        return MapParameters
    if number <= 8:
        return ToyParameters
    raise ValueError(f"notebook: expected a name that starts with 00 to 14, got {notebook!r}")


@dataclass
class NotebookRun:
    """One execution of a notebook: its checked parameters, where its results go, its verdicts."""

    name: str
    params: Any
    folder: Path
    verdicts: Verdicts

    def save_figure(self, figure: "Figure", name: str, data: "pd.DataFrame") -> None:
        """Saves ``figure`` as PNG, PDF and CSV under the run's ``figures/``."""
        figures.save(figure, name, data, self.folder / "figures")

    def finish(self) -> Verdicts:
        """Saves the verdicts under the run's ``verdicts/`` and returns the table, for the last cell to show."""
        self.verdicts.save(self.folder / "verdicts")
        return self.verdicts


def start(notebook: str, namespace: Mapping[str, Any], *, source: str = "toy MDPs") -> NotebookRun:
    """Checks the parameters in ``namespace`` (the notebook's ``globals()``) and sets up figures and verdicts.

    Papermill puts a mistyped ``-p`` name beside the real ones and only warns; here the stray name is an error. Call
    this right after the parameters, before anything else is defined. ``source`` says what the notebook measures.
    """
    params = schema_of(notebook).parse(_plain_values(namespace), where=notebook)
    figures.use_style()
    return NotebookRun(notebook, params, paths.resolve(params.RUN_DIR), Verdicts(notebook, source))


def _plain_values(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, ModuleType | FunctionType | type)
        and not inspect.isroutine(value)
    }
