"""The main job on other ladders and under other kernels, to see which verdicts hang on neither.

Each run is a process of its own, since kernels are chosen once in a process. What is kept of a run is its verdict
tables and a note of where it was made; a run whose tables are there is not done again.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

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
    todo = [run for run in wanted if not (results / run.name / "run.json").is_file()]
    status: dict[str, str | None] = {run.name: None for run in wanted}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc="elsewhere", unit="run") as bar,
    ):
        for run, error in pool.map(lambda run: (run, _one(run, file, only, overrides, results)), todo):
            status[run.name] = error
            bar.update()
    return status


def _one(run: Run, file: Path, only, overrides, results: Path) -> str | None:
    folder = paths.resolve(Path("runs") / "elsewhere" / run.name)
    chosen = {"SEED": run.seed, "RUN_DIR": folder}
    command = [sys.executable, "-m", "replicate", "run", "-f", str(file)]
    command += [f"--set={key}={value}" for key, value in chosen.items()]
    command += [f"--set={item}" for item in overrides] + [f"--only={name}" for name in only]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "verdicts", ignore_errors=True)  # of notebooks that an earlier run executed
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, env=_environment(run.setting), stdout=log, stderr=log)
    if done.returncode != 0:
        return f"status {done.returncode}: {_last_line(folder / 'log.txt')}"
    kept = results / run.name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder / "verdicts", kept / "verdicts")
    provenance = json.loads((folder / "provenance.json").read_text())
    note = {"run": run.name, "seed": run.seed, "setting": run.setting}
    note |= {
        "hardware": provenance["hardware"],
        "versions": provenance["versions"],
        "commit": provenance["commit"],
    }
    write_text(kept / "run.json", json.dumps(note, indent=1) + "\n")
    return None


def _environment(setting: str) -> dict[str, str]:
    # This process has pinned its own kernels; the child must choose anew.
    inherited = {name: value for name, value in os.environ.items() if name not in kernels.PINS}
    return inherited | {"REPLICATE_KERNELS": setting, "OMP_NUM_THREADS": "1"}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "no output"
