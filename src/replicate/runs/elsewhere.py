"""The main job on other ladders and under other kernels, to see which verdicts hang on neither.

Each run is a process of its own, since kernels are chosen once in a process. What is kept of a run is its verdict
tables and a note of where it was made. A notebook whose table is there is not executed again; remove the run's folder
to start it anew.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replicate import kernels
from replicate.files import write_text
from replicate.runs import paths


@dataclass(frozen=True)
class Run:
    """One run of the main job: the setting of ``REPLICATE_KERNELS``, and the seed."""

    setting: str
    seed: int

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.setting}-seed{self.seed}"


def elsewhere(
    file: Path,
    *,
    seeds: Sequence[int],
    settings: Sequence[str],
    only: Sequence[str],
    overrides: Sequence[str],
    results: Path,
    workers: int,
) -> dict[str, str | None]:
    """Runs the main job with the parameters in ``file`` for every seed and setting; its error by run, None if fine.

    ``only`` names the notebooks to execute by the beginning of their names, ``overrides`` are further ``KEY=VALUE``.
    Verdict tables go to ``results/SETTING-seedN/verdicts``.
    """
    if unknown := set(settings) - set(kernels.SETTINGS):
        raise ValueError(
            f"settings: expected some of {', '.join(kernels.SETTINGS)}, got {', '.join(sorted(unknown))}"
        )
    wanted = [Run(setting, seed) for setting, seed in product(settings, seeds)]
    stems = [path.stem for path in paths.notebook_files(paths.notebooks(), only)]
    # Notebook 00 shows the verdicts of a published run and has none of its own.
    stems = [stem for stem in stems if not stem.startswith("00")]
    missing = {
        run: [stem for stem in stems if not (results / run.name / f"verdicts/{stem}.json").is_file()]
        for run in wanted
    }
    todo = [run for run in wanted if missing[run]]
    status: dict[str, str | None] = {run.name: None for run in wanted}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc="elsewhere", unit="run") as bar,
    ):
        for run, error in pool.map(
            lambda run: (run, _one(run, file, missing[run], overrides, results)), todo
        ):
            status[run.name] = error
            bar.update()
    return status


def _one(run: Run, file: Path, notebooks: Sequence[str], overrides, results: Path) -> str | None:
    folder = paths.resolve(Path("runs") / "elsewhere" / run.name)
    chosen = {"SEED": run.seed, "RUN_DIR": folder}
    command = [sys.executable, "-m", "replicate", "run", "-f", str(file)]
    command += [f"--set={item}" for item in overrides]
    command += [f"--set={key}={value}" for key, value in chosen.items()]
    command += [f"--only={name}" for name in notebooks]
    folder.mkdir(parents=True, exist_ok=True)
    for name in notebooks:  # a table that an earlier run left must not pass for this one's
        (folder / f"verdicts/{name}.json").unlink(missing_ok=True)
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, env=_environment(run.setting), stdout=log, stderr=log)
    for name in notebooks:
        if (table := folder / f"verdicts/{name}.json").is_file():
            write_text(results / run.name / f"verdicts/{name}.json", table.read_text())
    if (folder / "provenance.json").is_file():
        write_text(results / run.name / "run.json", json.dumps(_note(run, folder), indent=1) + "\n")
    return f"status {done.returncode}: {_last_line(folder / 'log.txt')}" if done.returncode else None


def _note(run: Run, folder: Path) -> dict[str, Any]:
    """Where a run was made, without the folders of this machine."""
    provenance = json.loads((folder / "provenance.json").read_text())
    parameters = {key: value for key, value in provenance["parameters"].items() if not key.endswith("DIR")}
    made = {key: provenance[key] for key in ("jobs", "notebooks", "mixed")}
    return {"run": run.name, "seed": run.seed, "setting": run.setting, "parameters": parameters, **made}


def _environment(setting: str) -> dict[str, str]:
    # This process has pinned its own kernels; the child must choose anew.
    inherited = {name: value for name, value in os.environ.items() if name not in kernels.PINS}
    return inherited | {"REPLICATE_KERNELS": setting, "OMP_NUM_THREADS": "1"}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "no output"
