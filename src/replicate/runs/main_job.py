"""The main job: ladder, jobs, tables, notebooks, provenance; and taking a finished run over into ``results/``."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from replicate.files import require_writable
from replicate.ladder.checkpoints import Ladder
from replicate.runs import fingerprint, jobs, papermill, provenance, tables
from replicate.runs.params import ScaleParameters
from replicate.runs.sweep import run_folder, sweep
from replicate.runs.units import Outcome, records


@dataclass
class MainOutcome:
    """What the main job did."""

    folder: Path
    sweep: Outcome
    notebooks: dict[str, str | None]
    mixed: list[str] = field(default_factory=list)
    no_tables: str | None = None

    def summary(self) -> str:
        """One line for people, and a second one if the results were not all made by one code on one machine."""
        fine = sum(error is None for error in self.notebooks.values())
        said = f"{self.sweep.summary()}; {fine} of {len(self.notebooks)} notebooks executed; results in {self.folder}"
        differ = f"mixed origins: records, ladder and notebooks differ in {', '.join(self.mixed)}"
        return f"{said}\n{differ}, see provenance.json" if self.mixed else said

    def problems(self) -> list[str]:
        """One line per failed job and per failed notebook, and one if there are no tables."""
        failed = self.sweep.problems()
        failed += [f"notebook {name}: {error}" for name, error in self.notebooks.items() if error]
        return failed + ([f"tables: {self.no_tables}"] if self.no_tables else [])

    def warnings(self) -> list[str]:
        """One line per kind of alarm that runs raised."""
        return self.sweep.warnings()


def main_job(
    params: ScaleParameters,
    *,
    only: Sequence[str] = (),
    workers: int = 2,
    **how: Any,
) -> MainOutcome:
    """Runs everything; a failed job or notebook does not stop the others. ``how`` jobs are run, as a sweep takes it."""
    clock, folder = provenance.Clock(), run_folder(params)
    require_writable(folder)
    with clock.stage("ladder and jobs"):
        outcome = sweep(params, workers=workers, **how)
        ladder = jobs.ladder(params)
    without = _save_tables(params, ladder, folder / "tables")
    provenance.write(folder, describe(params, ladder, clock))
    with clock.stage("notebooks"):
        executed = papermill.execute(params, only=only, workers=workers)
    described = describe(params, ladder, clock)
    described["notebook_seconds"] = papermill.seconds(folder / "notebooks")
    described["fingerprint"] = fingerprint.summary(fingerprint.operations())
    provenance.write(folder, described)
    return MainOutcome(folder, outcome, executed, described["mixed"], without)


def _save_tables(params: ScaleParameters, ladder: Ladder, folder: Path) -> str | None:
    """Saves the tables; why there are none if every job failed."""
    try:
        tables.load(params, ladder).save(folder)
    except ValueError as error:
        return str(error)
    return None


def describe(params: ScaleParameters, ladder: Ladder, clock: provenance.Clock) -> dict[str, Any]:
    """The run's provenance, gathered from its records."""
    seeds = {experiment: jobs.seeds(params, experiment) for experiment in jobs.EXPERIMENTS}
    found = [record for experiment in jobs.EXPERIMENTS for record in records(params, experiment, ladder)]
    return provenance.describe(params.model_dump(), seeds, ladder, found, clock)


def publish_run(run: Path, results: Path) -> None:
    """Copies what is small of a finished run (figures, tables, verdicts, provenance) into ``results``.

    The old results stay until the new ones are there whole, and come back if these cannot take their place.
    """
    wanted = ("figures", "tables", "verdicts", "provenance.json")
    if missing := [name for name in wanted if not (run / name).exists()]:
        raise ValueError(f"{run}: not a finished run, it has no {', '.join(missing)}")
    results.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=results.parent, prefix=f".{results.name}.") as scratch:
        new = Path(scratch) / "new"
        for name in wanted[:-1]:
            # The PDFs and parquet files say the same again; updates, a row per GRPO update, are large.
            skip = shutil.ignore_patterns("*.pdf", "*.parquet", "updates.*", ".*")
            shutil.copytree(run / name, new / name, ignore=skip)
        shutil.copy(run / wanted[-1], new)
        _replace_folder(results, new, aside=Path(scratch) / "old")


def _replace_folder(folder: Path, new: Path, *, aside: Path) -> None:
    """Renames ``new`` to ``folder``, and an old ``folder`` to ``aside``, from where it comes back if that fails.

    Python knows no exchange of two folders: for an instant there is neither. A kill at that moment leaves both, whole,
    in the parent folder of ``aside``.
    """
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(aside)
    try:
        new.rename(folder)
    finally:
        if not folder.exists():
            aside.rename(folder)
