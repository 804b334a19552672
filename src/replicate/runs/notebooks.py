"""What a notebook needs at its start and its end, and executing all of them with Papermill.

A notebook defines almost nothing itself. Its first code cell holds its parameters, the second calls :func:`start`,
and its last one shows ``run.finish()``, the verdict table.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from replicate.ladder.checkpoints import Ladder
from replicate.report import figures
from replicate.report.claims import Verdicts
from replicate.runs import jobs, paths, tables
from replicate.runs.params import MapParameters, Parameters, ScaleParameters, ToyParameters
from replicate.runs.sweep import sweep

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
    return ScaleParameters


@dataclass
class NotebookRun:
    """One execution of a notebook: its checked parameters, where its results go, its verdicts."""

    name: str
    params: Any
    folder: Path
    verdicts: Verdicts

    @cached_property
    def ladder(self) -> Ladder:
        """The ladder that the parameters of a notebook from 09 on name (trained first if it is not there)."""
        return jobs.ladder(self.params)

    def tables(self) -> tables.Tables:
        """The records of this run as tables. Jobs without a record run first; failed ones are named."""
        outcome = sweep(self.params, ladder=self.ladder)
        for row in outcome.failed:
            print(f"failed: {row['experiment']} at {row['checkpoint']}: {row['error']}")
        self.verdicts.source = self.ladder.kind
        return tables.load(self.params, self.ladder)

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


def small_ladder(params: ToyParameters) -> Ladder:
    """The small regime's tiny ladder, for notebooks 05 to 08: trained once, then reused by all that ask."""
    return jobs.ladder(ScaleParameters(SEED=params.SEED), progress=False)


def execute(
    params: ScaleParameters, *, folder: Path | None = None, only: Sequence[str] = (), workers: int = 1
) -> dict[str, str | None]:
    """Executes the notebooks with Papermill into ``RUN_DIR/notebooks``; the first error line by name, None if fine.

    Each notebook gets the parameters of its schema; 00, which maps the others' verdicts, comes last. ``only`` names
    those wanted by the beginning of their names. Bars go to stderr.
    """
    from tqdm import tqdm

    folder = folder or paths.home() / "notebooks"
    found = [
        p for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if not only or p.stem.startswith(tuple(only))
    ]
    if not found:
        raise ValueError(f"notebooks: none to execute in {folder}")
    out = paths.resolve(params.RUN_DIR) / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    first = [p for p in found if not p.stem.startswith("00")]
    status: dict[str, str | None] = {}
    with (
        tqdm(total=len(found), desc="notebooks", unit="notebook") as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        for wave in (first, [p for p in found if p not in first]):
            waiting = {
                pool.submit(_execute, str(p), str(out / p.name), values(p.stem, params)): p for p in wave
            }
            for ready in as_completed(waiting):
                status[waiting[ready].stem] = ready.result()
                bar.update()
    return dict(sorted(status.items()))


def values(notebook: str, params: ScaleParameters) -> dict[str, Any]:
    """The values that a run hands to a notebook: those of its parameters that the notebook knows."""
    known = schema_of(notebook).model_fields
    return {name: value for name, value in params.model_dump().items() if name in known}


def _execute(source: str, target: str, parameters: dict[str, Any], attempts: int = 3) -> str | None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["OMP_NUM_THREADS"] = "1"  # two kernels at once on two cores
    with open(Path(target).parent / "kernels.log", "a") as log:
        os.dup2(log.fileno(), 2)  # what kernels say of themselves would tear the progress bar
    for attempt in range(attempts):
        try:
            papermill.execute_notebook(source, target, parameters, kernel_name="python3", progress_bar=False)
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}".splitlines()[0]
        # Kernels that start side by side race for ports; a launch that lost is tried again.
        except RuntimeError as error:
            if attempt + 1 == attempts:
                return f"kernel did not start: {error}".splitlines()[0]
        else:
            return None
    return None


def _plain_values(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, ModuleType | FunctionType | type)
        and not inspect.isroutine(value)
    }
