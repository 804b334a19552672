"""Running all jobs of a set of parameters: what is done is not done again, what fails is reported and passed over."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel
from tqdm import tqdm

from replicate.files import clear_parts, require_writable, write_text
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.runs import jobs, paths, preflight, provenance
from replicate.runs.jobs import EXPERIMENTS, Experiment
from replicate.runs.params import ScaleParameters
from replicate.runs.store import Damaged, Store, key_of
from replicate.runs.workers import attempt, error_line, run_each

Answer = tuple[dict[int, dict[str, Any]], dict[str, Any]]
"""What comes back from a unit of work: results by seed, and who computed them."""


@dataclass(frozen=True)
class Unit:
    """The missing jobs of one checkpoint and one experiment, whose seeds run together, and what they are given.

    ``made_by`` is what the keys say of code, libraries and kernels: whoever does the work must agree.
    """

    checkpoint: Checkpoint
    experiment: Experiment
    keys: dict[int, str]
    settings: BaseModel
    made_by: dict[str, Any]


@dataclass
class Outcome:
    """What a sweep did: how many jobs ran, how many records were there already, and the rows that failed.

    ``damaged`` has a line for each record that was there, was not what had been written, and was run again.
    """

    done: int = 0
    found: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        again = f", {len(self.damaged)} damaged records run again" if self.damaged else ""
        return f"{self.done} jobs done, {self.found} found finished, {len(self.failed)} failed{again}"

    def problems(self) -> list[str]:
        """One line per failed row."""
        return [f"{row['experiment']} at {row['checkpoint']}: {row['error']}" for row in self.failed]


def store_of(params: ScaleParameters) -> Store:
    """The record store of a run."""
    return Store(paths.resolve(params.RUN_DIR) / "records")


def job_key(params: ScaleParameters, checkpoint: Checkpoint, experiment: Experiment, seed: int) -> str:
    """The key of one job: its experiment, seed, settings, the checkpoint's content, and what computes it."""
    return key_of(_inputs(*_made(params, experiment), checkpoint, experiment, seed))


def _made(params: ScaleParameters, experiment: Experiment) -> tuple[BaseModel, dict[str, Any]]:
    """The experiment's settings, and what computes it."""
    settings = jobs.settings(params, experiment)
    return settings, jobs.maker(experiment, settings)


def _inputs(settings, made_by, checkpoint, experiment, seed) -> dict[str, Any]:
    inputs = {"experiment": experiment, "seed": seed, "checkpoint": checkpoint.sha}
    return {**inputs, "settings": settings.model_dump(), "made_by": made_by}


def sweep(
    params: ScaleParameters,
    *,
    experiments: Sequence[Experiment] = EXPERIMENTS,
    ladder: Ladder | None = None,
    engine: str = "local",
    address: str | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Outcome:
    """Runs every job whose record is missing and writes its record at once.

    ``engine`` is ``"local"`` (in this process, or in ``workers`` processes if more than one) or ``"ray"`` (needs the
    extra ``cluster``; ``address`` joins a cluster). Records do not depend on the choice.
    The failures of this sweep are also written to ``RUN_DIR/failures.json``.
    """
    preflight.require_engine(engine)
    store = store_of(params)
    for folder in (
        store.folder.parent,
        store.folder,
        *(store.folder / experiment for experiment in experiments),
    ):
        require_writable(folder)  # rather than find out when the first job is done
    ladder = ladder or jobs.ladder(params, progress=progress)
    with FileLock(store.folder / ".lock"):  # a second sweep of the same run waits, then finds the records
        units, outcome = _missing(params, ladder, store, experiments)
        if engine == "ray":
            answers = _ray(params, units, address)
        else:
            answers = _local(units) if workers == 1 else _processes(units, workers)
        with closing(answers):
            _collect(store, units, answers, outcome, progress)
    return outcome


def _missing(params, ladder, store, experiments) -> tuple[list[Unit], Outcome]:
    """The units of work without a sound record, and what was found on the way."""
    units, outcome = [], Outcome()
    for experiment in experiments:
        clear_parts(store.folder / experiment)
        settings, made_by = _made(params, experiment)
        for checkpoint in ladder:
            inputs = {
                seed: _inputs(settings, made_by, checkpoint, experiment, seed)
                for seed in jobs.seeds(params, experiment)
            }
            keys = {seed: key_of(found) for seed, found in inputs.items()}
            done = {seed for seed, key in keys.items() if _sound(store, experiment, key, outcome.damaged)}
            missing = {seed: key for seed, key in keys.items() if seed not in done}
            outcome.found += len(done)
            if missing:
                units.append(Unit(checkpoint, experiment, missing, settings, made_by))
    for line in outcome.damaged:
        tqdm.write(f"{line}: run again", file=sys.stderr)
    return units, outcome


def _sound(store: Store, experiment: Experiment, key: str, damaged: list[str]) -> dict[str, Any] | None:
    """The record if there is a sound one; one that is not sound gets a line in ``damaged``."""
    try:
        return store.get(experiment, key)
    except Damaged as error:
        damaged.append(_without_home(str(error)))
        return None


def _collect(store: Store, units: Sequence[Unit], answers, outcome: Outcome, progress: bool) -> None:
    """Writes what comes back at once. A job without a result, or with one that is not finite, becomes a failed row.

    A record that cannot be written (a full disk) ends the sweep with one line: no later one could be kept either, and
    what is there stays.
    """
    total = sum(len(unit.keys) for unit in units)
    with tqdm(total=total, desc="jobs", unit="job", disable=not progress or not units) as bar:
        for unit, answer, error in answers:
            bar.set_postfix_str(f"{unit.experiment} {unit.checkpoint.name}", refresh=False)
            for seeds, failure in _failures(store, unit, answer, error):
                outcome.failed.append(_row(unit, seeds, failure))
                tqdm.write(f"failed: {outcome.problems()[-1]}")
            bar.update(len(unit.keys))
    outcome.done += total - sum(len(row["seeds"]) for row in outcome.failed)
    write_text(store.folder.parent / "failures.json", json.dumps(outcome.failed, indent=1) + "\n")


def _failures(store, unit: Unit, answer: Answer | None, error: str | None) -> Iterator[tuple[list[int], str]]:
    """Writes the unit's records; the seeds that have none, and why."""
    if error is not None:
        yield list(unit.keys), error
        return
    results, origin = answer
    for seed, key in unit.keys.items():
        try:
            store.put(unit.experiment, key, _record(unit, seed, results[seed], origin))
        except ValueError as wrong:
            yield [seed], f"seed {seed}: {wrong}"


def _local(units: Sequence[Unit]) -> Iterator[tuple[Unit, Answer | None, str | None]]:
    for unit in units:
        yield unit, *attempt(_work, (unit,))


def _processes(units: Sequence[Unit], count: int) -> Iterator[tuple[Unit, Answer | None, str | None]]:
    for index, answer, error in run_each(_work, [(unit,) for unit in units], workers=count):
        yield units[index], answer, error


def _ray(params: ScaleParameters, units: Sequence[Unit], address: str | None):
    import ray

    ray.init(address=address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    # Every job uses its fixed number of threads, and a GPU where the parameters ask for one.
    remote = ray.remote(num_cpus=1, num_gpus=int(params.DEVICE.startswith("cuda")))(attempt)
    waiting = {remote.remote(_work, (unit,)): unit for unit in units}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        unit = waiting.pop(ready)
        try:
            yield unit, *ray.get(ready)
        except ray.exceptions.RayError as error:  # the worker died; the other jobs go on
            yield unit, None, error_line(error)


def _work(unit: Unit) -> Answer:
    """Does a unit's jobs, wherever this is; refuses where the numbers would not be those that the keys stand for."""
    if (here := jobs.maker(unit.experiment, unit.settings)) != unit.made_by:
        differ = [name for name in here if here[name] != unit.made_by[name]]
        raise ValueError(
            f"worker: its {', '.join(differ)} differ from the sweep's, start it anew with the same"
        )
    start = time.perf_counter()
    results = jobs.run(unit.experiment, unit.settings, unit.checkpoint, list(unit.keys))
    seconds = (time.perf_counter() - start) / len(unit.keys)  # seeds run together: to each its share
    return results, provenance.origin(unit.settings.machine.device, seconds)


def _record(unit: Unit, seed: int, result: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    checkpoint = {name: getattr(unit.checkpoint, name) for name in ("name", "stage", "step", "tokens", "sha")}
    inputs = _inputs(unit.settings, unit.made_by, unit.checkpoint, unit.experiment, seed)
    return {**inputs, "checkpoint": checkpoint, "result": result, "origin": origin}


def _row(unit: Unit, seeds: list[int], error: str) -> dict[str, Any]:
    return {
        "experiment": unit.experiment,
        "checkpoint": unit.checkpoint.name,
        "step": unit.checkpoint.step,
        "seeds": seeds,
        "error": _without_home(error),
    }


def _without_home(text: str) -> str:
    return text.replace(str(paths.home()) + "/", "")


def records(params: ScaleParameters, experiment: Experiment, ladder: Ladder) -> list[dict[str, Any]]:
    """The sound records of an experiment under these parameters, in the order of checkpoints and seeds."""
    store, damaged = store_of(params), []
    keys = [
        job_key(params, checkpoint, experiment, seed)
        for checkpoint in ladder
        for seed in jobs.seeds(params, experiment)
    ]
    found = [_sound(store, experiment, key, damaged) for key in keys]
    for line in damaged:
        tqdm.write(f"{line}: left out, run the sweep again", file=sys.stderr)
    return [record for record in found if record is not None]


def run_folder(params: ScaleParameters) -> Path:
    """Where this run's results go."""
    return paths.resolve(params.RUN_DIR)
