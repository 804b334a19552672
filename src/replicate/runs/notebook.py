"""What a notebook needs at its start and its end.

A notebook defines almost nothing itself. Its first code cell holds its parameters, the second calls :func:`start`,
and its last one shows ``run.finish()``, the verdict table.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from replicate.ladder.checkpoints import Ladder
from replicate.report.figures import style
from replicate.report.ledger.asked import Asked
from replicate.report.ledger.questions import ledger
from replicate.report.verdicts import Verdicts, cell_number
from replicate.runs import (
    closeup,
    horizons_tables,
    jobs,
    paths,
    preflight,
    sensitivity_tables,
    study_tables,
    tables,
)
from replicate.runs.parameter_files import schema_of
from replicate.runs.params import LanguageParameters, ScaleParameters, ToyParameters
from replicate.runs.sweep import sweep

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

# The code cell of a committed notebook that calls `start`.
_START_CELL = 2

# Names that IPython itself puts beside the user's.
_IPYTHON = {"In", "Out", "get_ipython", "exit", "quit", "open"}


@dataclass
class NotebookRun:
    """One execution of a notebook: its checked parameters, where its results go, its verdicts."""

    name: str
    params: Any
    folder: Path
    verdicts: Verdicts
    verdict: Asked
    _look: closeup.Look | None = None

    @cached_property
    def ladder(self) -> Ladder:
        """The ladder that the parameters of a notebook from 09 on name (trained first if it is not there)."""
        return jobs.ladder(self.params)

    def look(self, *, rng: "np.random.Generator", rescale: float = 1.0) -> closeup.Look:
        """The rungs that a notebook from 05 to 08 looks at: see :func:`replicate.runs.closeup.look`."""
        self._look = closeup.look(self, rng=rng, rescale=rescale)
        return self._look

    def tables(self) -> tables.Tables:
        """The records of this run as tables. Jobs without a record run first; failed ones are named."""
        outcome = sweep(self.params, ladder=self.ladder)
        for line in outcome.problems():
            print(f"failed: {line}")
        return tables.load(self.params, self.ladder)

    @cached_property
    def study(self) -> study_tables.StudyTables:
        """The published study of several ladders: what is concluded about ladders is drawn from it, in any regime."""
        folder = paths.resolve(self.params.STUDY)
        # It comes with the suite: a run in a folder of its own reads it from there.
        return study_tables.load(folder if folder.is_dir() else paths.notebooks().parent / self.params.STUDY)

    @cached_property
    def held(self) -> study_tables.StudyTables:
        """The study's interventions: its ladders with J_0 held."""
        folder = paths.resolve(self.params.STUDY)
        folder = folder if folder.is_dir() else paths.notebooks().parent / self.params.STUDY
        return study_tables.load(folder / "interventions")

    @cached_property
    def sensitivity(self) -> sensitivity_tables.SensitivityTables:
        """The published study of RL's settings, in the folder ``sensitivity`` beside the other study's."""
        return sensitivity_tables.load(self._beside("sensitivity"))

    @cached_property
    def horizons(self) -> horizons_tables.HorizonTables:
        """The published study of longer answers, in the folder ``horizons`` beside the other study's."""
        return horizons_tables.load(self._beside("horizons"))

    def _beside(self, name: str) -> Path:
        folder = paths.resolve(self.params.STUDY).parent / name
        own = (paths.notebooks().parent / self.params.STUDY).parent / name
        return folder if folder.is_dir() else own

    def save_figure(self, figure: "Figure", name: str, data: "pd.DataFrame") -> None:
        """Saves ``figure`` as PNG, PDF and CSV under the run's ``figures/``."""
        style.save(figure, name, data, self.folder / "figures")

    def finish(self) -> Verdicts:
        """Saves the verdicts under the run's ``verdicts/`` and returns the table, for the last cell to show.

        Raises :class:`~replicate.report.verdicts.ControlFailed` if a control passed what it should reject, and
        ``ValueError`` if a row that the notebook's ledger declares was not measured.
        """
        self.verdict.require_all()
        if self._look and self._look.foreign:
            self.verdicts.rows = closeup.forgive(self.verdicts.rows, self._look.ladder.kind)
        self.verdicts.save(self.folder / "verdicts")
        self.verdicts.require_controls()
        return self.verdicts


def start(notebook: str, namespace: Mapping[str, Any], *, source: str | None = None) -> NotebookRun:
    """Checks the parameters in ``namespace`` (the notebook's ``globals()``) and sets up figures and verdicts.

    One flat file of parameters serves every notebook: those of the others are checked and left alone. Papermill puts
    a mistyped ``-p`` name beside the real ones and only warns; here a name that no notebook knows is an error. Call
    this right after the parameters, in the second code cell, before anything else is defined. ``source`` says what the
    notebook's rows measure; without it each row says so itself. What a reader may move is declared in the notebook's
    ledger, and its range is checked.
    """
    values, asks = _plain_values(namespace), ledger(notebook)
    for name, knob in asks.knobs.items():
        knob.checked(values.pop(name, knob.default), where=notebook)
    params = schema_of(notebook).parse(values, where=notebook)
    if isinstance(params, ScaleParameters):
        preflight.require_one_token(params, where=notebook)
        preflight.require(params, where=notebook)
    elif isinstance(params, ToyParameters | LanguageParameters):
        preflight.require_folders(params, where=notebook)
    style.use_style()
    verdicts = Verdicts(notebook, source, shift=(cell_number() or _START_CELL) - _START_CELL)
    return NotebookRun(notebook, params, paths.resolve(params.RUN_DIR), verdicts, Asked(verdicts, asks))


def _plain_values(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith(("_", "PAPERMILL_"))  # --inject-paths adds PAPERMILL_INPUT_PATH and the like
        and name not in _IPYTHON
        and not isinstance(value, ModuleType | FunctionType | type)
        and not inspect.isroutine(value)
    }
