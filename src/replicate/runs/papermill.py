"""Executing the notebooks with Papermill, several at a time."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replicate.runs import paths
from replicate.runs.parameter_files import schema_of
from replicate.runs.params import ScaleParameters
from replicate.runs.workers import run_each


def execute(
    params: ScaleParameters, *, folder: Path | None = None, only: Sequence[str] = (), workers: int = 1
) -> dict[str, str | None]:
    """Executes the notebooks with Papermill into ``RUN_DIR/notebooks``; the first error line by name, None if fine.

    Each notebook gets the parameters of its schema; 00, which maps the others' verdicts, comes last. ``only`` names
    those wanted by the beginning of their names. Bars go to stderr.
    """
    from tqdm import tqdm

    folder = folder or paths.notebooks()
    found = paths.notebook_files(folder, only)
    if not found:
        raise ValueError(f"notebooks: none to execute in {folder}")
    out = paths.resolve(params.RUN_DIR) / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    waves = [[p for p in found if p.stem.startswith("00") == last] for last in (False, True)]
    status: dict[str, str | None] = {}
    with tqdm(total=len(found), desc="notebooks", unit="notebook") as bar:
        for wave in waves:
            tasks = [(str(p), str(out / p.name), values(p.stem, params)) for p in wave]
            for index, problem, death in run_each(_execute, tasks, workers=workers):
                status[wave[index].stem] = death or problem
                bar.update()
    return dict(sorted(status.items()))


def seconds(folder: Path) -> dict[str, float]:
    """How long each executed notebook in ``folder`` took, as Papermill noted in it; those that were killed left out."""
    found = {path.stem: _duration(path) for path in sorted(folder.glob("*.ipynb"))}
    return {name: round(duration, 1) for name, duration in found.items() if duration is not None}


def _duration(path: Path) -> float | None:
    try:  # Papermill writes in place: a kill at that moment leaves half a file
        return json.loads(path.read_text())["metadata"]["papermill"]["duration"]
    except (ValueError, KeyError):
        return None


def values(notebook: str, params: ScaleParameters) -> dict[str, Any]:
    """The values that a run hands to a notebook: those of its parameters that the notebook knows."""
    known = schema_of(notebook).model_fields
    return {name: value for name, value in params.model_dump().items() if name in known}


def _execute(source: str, target: str, parameters: dict[str, Any], attempts: int = 3) -> str | None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    os.environ["OMP_NUM_THREADS"] = "1"  # two kernels at once on two cores
    with open(Path(target).parent / "kernels.log", "a") as log:
        os.dup2(log.fileno(), 2)  # what kernels say of themselves would tear the progress bar
    for attempt in range(attempts):
        try:
            papermill.execute_notebook(source, target, parameters, kernel_name="python3", progress_bar=False)
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}".splitlines()[0]
        except DeadKernelError:
            return "its kernel was killed (out of memory?)"
        # Kernels that start side by side race for ports; a launch that lost is tried again.
        except RuntimeError as error:
            if attempt + 1 == attempts:
                return f"kernel did not start: {error}".splitlines()[0]
        else:
            return None
    return None
