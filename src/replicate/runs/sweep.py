"""Running all jobs of a set of parameters: what is done is not done again, what fails is reported and passed over."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from replicate.files import write_text
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.runs import jobs, paths
from replicate.runs.jobs import EXPERIMENTS, Experiment
from replicate.runs.params import ScaleParameters
from replicate.runs.store import Store, key_of


@dataclass(frozen=True)
class Unit:
    """The missing jobs of one checkpoint and one experiment; their seeds run together."""

    checkpoint: Checkpoint
    experiment: Experiment
    keys: dict[int, str]


@dataclass
class Outcome:
    """What a sweep did: how many jobs ran, how many records were there already, and the rows that failed."""

    done: int = 0
    found: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        return f"{self.done} jobs done, {self.found} found finished, {len(self.failed)} failed"


def store_of(params: ScaleParameters) -> Store:
    """The record store of a run."""
    return Store(paths.resolve(params.RUN_DIR) / "records")


def job_key(params: ScaleParameters, checkpoint: Checkpoint, experiment: Experiment, seed: int) -> str:
    """The key of one job: its experiment, seed, settings and the checkpoint's content."""
    inputs = {"experiment": experiment, "seed": seed, "checkpoint": checkpoint.sha}
    return key_of({**inputs, "settings": jobs.settings(params, experiment)})


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
    if engine not in ("local", "ray"):
        raise ValueError(f"engine: expected 'local' or 'ray', got {engine!r}")
    ladder = ladder or jobs.ladder(params, progress=progress)
    store = store_of(params)
    store.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(store.folder / ".lock"):  # a second sweep of the same run waits, then finds the records
        units, found = _missing(params, ladder, store, experiments)
        if engine == "ray":
            results = _ray(params, units, address)
        else:
            results = _local(params, units) if workers == 1 else _processes(params, units, workers)
        return _collect(params, store, units, found, results, progress)


def _missing(params, ladder, store, experiments) -> tuple[list[Unit], int]:
    """The units of work without a record, and how many jobs have one."""
    units, found = [], 0
    for experiment in experiments:
        for checkpoint in ladder:
            keys = {s: job_key(params, checkpoint, experiment, s) for s in jobs.seeds(params, experiment)}
            missing = {s: key for s, key in keys.items() if not store.path(experiment, key).is_file()}
            found += len(keys) - len(missing)
            if missing:
                units.append(Unit(checkpoint, experiment, missing))
    return units, found


def _collect(params, store, units, found, results, progress) -> Outcome:
    outcome = Outcome(found=found)
    total = sum(len(unit.keys) for unit in units)
    with tqdm(total=total, desc="jobs", unit="job", disable=not progress or not units) as bar:
        for unit, values, error in results:
            bar.set_postfix_str(f"{unit.experiment} {unit.checkpoint.name}", refresh=False)
            if error is None:
                _write(store, params, unit, values)
                outcome.done += len(unit.keys)
            else:
                outcome.failed.append(_failure(unit, error))
                tqdm.write(f"failed: {unit.experiment} at {unit.checkpoint.name}: {error}")
            bar.update(len(unit.keys))
    write_text(store.folder.parent / "failures.json", json.dumps(outcome.failed, indent=1) + "\n")
    return outcome


def _local(params: ScaleParameters, units: Sequence[Unit]) -> Iterator[tuple[Unit, dict, str | None]]:
    for unit in units:
        yield unit, *_attempt(params, unit)


def _processes(params: ScaleParameters, units: Sequence[Unit], workers: int):
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_attempt, params, unit): unit for unit in units}
        for ready in as_completed(waiting):
            try:
                results, error = ready.result()
            except BrokenExecutor as broken:  # a worker was killed; the records written so far stay
                results, error = {}, _one_line(broken)
            yield waiting[ready], results, error


def _ray(params: ScaleParameters, units: Sequence[Unit], address: str | None):
    try:
        import ray
    except ImportError:
        raise ValueError("engine: 'ray' is not installed; pip install 'replicate[cluster]'") from None
    ray.init(address=address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    # Every job uses its fixed number of threads, and a GPU where the parameters ask for one.
    remote = ray.remote(num_cpus=1, num_gpus=int(params.DEVICE.startswith("cuda")))(_attempt)
    waiting = {remote.remote(params, unit): unit for unit in units}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        unit = waiting.pop(ready)
        try:
            yield unit, *ray.get(ready)
        except ray.exceptions.RayError as error:  # the worker died; the other jobs go on
            yield unit, {}, _one_line(error)


def _attempt(params: ScaleParameters, unit: Unit) -> tuple[dict[int, dict[str, Any]], str | None]:
    try:
        return jobs.run(params, unit.checkpoint, unit.experiment, list(unit.keys)), None
    # Whatever goes wrong inside one job must not take the others with it; Ctrl-C still does.
    except Exception as error:
        return {}, _one_line(error)


def _write(store: Store, params: ScaleParameters, unit: Unit, results: dict[int, dict[str, Any]]) -> None:
    checkpoint = unit.checkpoint
    for seed, key in unit.keys.items():
        record = {
            "experiment": unit.experiment,
            "seed": seed,
            "checkpoint": {
                "name": checkpoint.name,
                "stage": checkpoint.stage,
                "step": checkpoint.step,
                "tokens": checkpoint.tokens,
                "sha": checkpoint.sha,
            },
            "settings": jobs.settings(params, unit.experiment),
            "result": results[seed],
        }
        store.put(unit.experiment, key, record)


def _failure(unit: Unit, error: str) -> dict[str, Any]:
    return {
        "experiment": unit.experiment,
        "checkpoint": unit.checkpoint.name,
        "step": unit.checkpoint.step,
        "seeds": list(unit.keys),
        "error": error.replace(str(paths.home()) + "/", ""),
    }


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"[:300]


def records(params: ScaleParameters, experiment: Experiment, ladder: Ladder) -> list[dict[str, Any]]:
    """The finished records of an experiment under these parameters, in the order of checkpoints and seeds."""
    store = store_of(params)
    found = (
        store.get(experiment, job_key(params, checkpoint, experiment, seed))
        for checkpoint in ladder
        for seed in jobs.seeds(params, experiment)
    )
    return [record for record in found if record is not None]


def run_folder(params: ScaleParameters) -> Path:
    """Where this run's results go."""
    return paths.resolve(params.RUN_DIR)
