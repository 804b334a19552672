"""What is left to do of a set of parameters: units of work, their keys, and the records that they leave."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from tqdm import tqdm

from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.runs import jobs, paths, provenance
from replicate.runs.jobs import Experiment
from replicate.runs.params import ScaleParameters
from replicate.runs.store import Damaged, Store, key_of

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

    def finished(self) -> int:
        """How many jobs are settled, one way or the other."""
        return self.done + self.found + sum(len(row["seeds"]) for row in self.failed)

    def summary(self) -> str:
        """One line for people."""
        again = f", {len(self.damaged)} damaged records run again" if self.damaged else ""
        return f"{self.done} jobs done, {self.found} found finished, {len(self.failed)} failed{again}"

    def problems(self) -> list[str]:
        """One line per failed row."""
        return [
            " ".join(
                filter(
                    None, (row.get("ladder"), f"{row['experiment']} at {row['checkpoint']}: {row['error']}")
                )
            )
            for row in self.failed
        ]


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


def missing(
    params: ScaleParameters,
    checkpoints: Iterable[Checkpoint],
    experiments: Sequence[Experiment],
    outcome: Outcome,
) -> list[Unit]:
    """The units of work without a sound record; what is found on the way is noted in ``outcome``."""
    units, store, before = [], store_of(params), len(outcome.damaged)
    for experiment in experiments:
        settings, made_by = _made(params, experiment)
        for checkpoint in checkpoints:
            inputs = {
                seed: _inputs(settings, made_by, checkpoint, experiment, seed)
                for seed in jobs.seeds(params, experiment)
            }
            keys = {seed: key_of(found) for seed, found in inputs.items()}
            done = {seed for seed, key in keys.items() if _sound(store, experiment, key, outcome.damaged)}
            left = {seed: key for seed, key in keys.items() if seed not in done}
            outcome.found += len(done)
            if left:
                units.append(Unit(checkpoint, experiment, left, settings, made_by))
    for line in outcome.damaged[before:]:
        tqdm.write(f"{line}: run again", file=sys.stderr)
    return units


def _sound(store: Store, experiment: Experiment, key: str, damaged: list[str]) -> dict[str, Any] | None:
    """The record if there is a sound one; one that is not sound gets a line in ``damaged``."""
    try:
        return store.get(experiment, key)
    except Damaged as error:
        damaged.append(_without_home(str(error)))
        return None


def work(unit: Unit) -> Answer:
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


def record(unit: Unit, seed: int, result: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one job."""
    checkpoint = {name: getattr(unit.checkpoint, name) for name in ("name", "stage", "step", "tokens", "sha")}
    inputs = _inputs(unit.settings, unit.made_by, unit.checkpoint, unit.experiment, seed)
    return {**inputs, "checkpoint": checkpoint, "result": result, "origin": origin}


def failed_row(unit: Unit, seeds: list[int], error: str, plan: str = "") -> dict[str, Any]:
    """The row of ``failures.json`` for jobs without a result; ``plan`` names their ladder where there are several."""
    return {
        **({"ladder": plan} if plan else {}),
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
