"""What is left to do of a set of parameters: units of work, their keys, and the records that they leave."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    ``watched`` counts, by experiment, the runs that may raise ``alarms``, done or found; an alarm has its run's
    ``experiment``, ``step`` and ``seed`` in front.
    """

    done: int = 0
    found: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    watched: Counter[str] = field(default_factory=Counter)
    alarms: list[dict[str, Any]] = field(default_factory=list)

    def note(self, experiment: Experiment, step: int, seed: int, result: Mapping[str, Any]) -> None:
        """Keeps the alarms of a finished run; an experiment that raises none has no ``alarms`` in its results."""
        if (found := result.get("alarms")) is not None:
            self.watched[experiment] += 1
            where = {"experiment": experiment, "step": step, "seed": seed}
            self.alarms += [{**where, **alarm} for alarm in found]

    def warnings(self) -> list[str]:
        """One line per experiment and kind of alarm, see :func:`warnings_of`."""
        return warnings_of({"": self})

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


def warnings_of(outcomes: Mapping[str, Outcome]) -> list[str]:
    """One line per experiment and kind of alarm over all ladders: on how many runs, from which checkpoint to which, and
    what is said of the run that has most of it. Ladders have a name where there are several.

    Runs that were found finished count like those done now: a sweep that was interrupted ends with the same lines.
    """
    watched = sum((outcome.watched for outcome in outcomes.values()), Counter())
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for ladder, outcome in outcomes.items():
        for row in outcome.alarms:
            kinds.setdefault((row["experiment"], row["alarm"]), []).append({"ladder": ladder, **row})
    return [_warning(rows, watched[experiment]) for (experiment, _), rows in sorted(kinds.items())]


def _warning(rows: Sequence[Mapping[str, Any]], watched: int) -> str:
    """The line of one kind of alarm. Ties go to the earliest run, whoever finished first."""
    worst = min(rows, key=lambda row: (-row["share"], row["ladder"], row["step"], row["seed"]))
    first, last = (end(row["step"] for row in rows) for end in (min, max))
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    where = f"{worst['ladder']}, " if worst["ladder"] else ""
    on = f"{worst['experiment']}: {worst['alarm']} on {len(rows)} of {watched} runs, {steps}"
    return f"{on}; most at {where}step {worst['step']}, seed {worst['seed']}: {worst['said']}"


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
            looked = {seed: _sound(store, experiment, key, outcome.damaged) for seed, key in keys.items()}
            done = {seed: record for seed, record in looked.items() if record is not None}
            left = {seed: key for seed, key in keys.items() if seed not in done}
            outcome.found += len(done)
            for seed, record in done.items():
                outcome.note(experiment, checkpoint.step, seed, record["result"])
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
