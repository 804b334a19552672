"""The main job: ladder, jobs, tables, notebooks, provenance; and taking a finished run over into ``results/``."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replicate.runs import jobs, papermill, provenance, tables
from replicate.runs.params import ScaleParameters
from replicate.runs.sweep import Outcome, run_folder, sweep


@dataclass
class MainOutcome:
    """What the main job did."""

    folder: Path
    sweep: Outcome
    notebooks: dict[str, str | None]

    def summary(self) -> str:
        """One line for people."""
        fine = sum(error is None for error in self.notebooks.values())
        return f"{self.sweep.summary()}; {fine} of {len(self.notebooks)} notebooks executed; results in {self.folder}"

    def problems(self) -> list[str]:
        """One line per failed job and per failed notebook."""
        failed = [f"{row['experiment']} at {row['checkpoint']}: {row['error']}" for row in self.sweep.failed]
        return failed + [f"notebook {name}: {error}" for name, error in self.notebooks.items() if error]


def main_job(
    params: ScaleParameters,
    *,
    engine: str = "local",
    address: str | None = None,
    only: Sequence[str] = (),
    workers: int = 2,
) -> MainOutcome:
    """Runs everything; a failed job or notebook does not stop the others."""
    clock, folder = provenance.Clock(), run_folder(params)
    with clock.stage("ladder"):
        ladder = jobs.ladder(params)
    with clock.stage("jobs"):
        outcome = sweep(params, ladder=ladder, engine=engine, address=address, workers=workers)
    tables.load(params, ladder).save(folder / "tables")
    provenance.write(folder, params, ladder, clock)
    with clock.stage("notebooks"):
        executed = papermill.execute(params, only=only, workers=workers)
    provenance.write(folder, params, ladder, clock)
    return MainOutcome(folder, outcome, executed)


def publish_run(run: Path, results: Path) -> None:
    """Copies what is small of a finished run (figures, tables, verdicts, provenance) into ``results``."""
    wanted = ("figures", "tables", "verdicts", "provenance.json")
    if missing := [name for name in wanted if not (run / name).exists()]:
        raise ValueError(f"{run}: not a finished run, it has no {', '.join(missing)}")
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    for name in wanted[:-1]:
        # The PDFs and parquet files say the same again; updates, a row per GRPO update, are large.
        skip = shutil.ignore_patterns("*.pdf", "*.parquet", "updates.*")
        shutil.copytree(run / name, results / name, ignore=skip)
    shutil.copy(run / wanted[-1], results)
