"""Running all jobs of one or several sets of parameters: what is done is not done again, what fails is reported and
passed over. A ladder is a stream: jobs run on the rungs that are there while others are trained or fetched. Several
sweeps may share a run's folder: a rung is worked on by one of them at a time, and by another if that one dies."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replicate.files import clear_parts, require_writable, write_text
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.ladder.stream import Stream
from replicate.runs import jobs, paths, preflight
from replicate.runs.jobs import EXPERIMENTS, Experiment
from replicate.runs.params import ScaleParameters
from replicate.runs.shares import Claims, Shard
from replicate.runs.units import Answer, Outcome, Unit, failed_row, missing, record, store_of, work
from replicate.runs.workers import attempt, run_each

_MOMENT = 0.1  # seconds between two looks for rungs that are on their way
_CLAIMS = ".claims"  # where in the folder of records sweeps tell each other which rungs they work on


@dataclass
class Plan:
    """A set of parameters under way: the jobs of which rungs are known, what waits, what became of the rest.

    ``name`` is said of its jobs. ``filling`` is the state of the task of its stream, ``"done"`` where there is none.
    ``waiting`` are the rungs that have come and that nobody here works on yet, ``others`` the names of those that are
    in no part of the ``shard``, if there is one.
    """

    params: ScaleParameters
    experiments: Sequence[Experiment]
    name: str = ""
    stream: Stream | None = None
    shard: Shard | None = None
    filling: str = "waiting"
    claims: Claims | None = None
    others: set[str] = field(default_factory=set)
    waiting: list[Checkpoint] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    outcome: Outcome = field(default_factory=Outcome)

    def open(self) -> None:
        """Opens the ladder's stream, and begins to fetch the rungs that have jobs left.

        Raises ``ValueError`` for a shard of a ladder that is not known beforehand.
        """
        self.stream = self.stream or jobs.stream(self.params)
        self.claims = Claims(store_of(self.params).folder / _CLAIMS)
        if not self.stream.has_task():
            self.filling = "done"
        if self.shard:
            if (ladder := self.stream.known()) is None:
                raise ValueError(
                    "--shard: expected a ladder that is there, got none; run `replicate ladder` first"
                )
            self.others = {rung.name for rung in ladder} - self.shard.names(ladder)
            # What is refused has no place among the rungs: it is the first shard's to say so.
            self.others |= {rung.name for rung, _ in ladder.refused if self.shard.index > 1}
        self.stream.begin(self._wants)

    def _wants(self, rung: Checkpoint) -> bool:
        return rung.name not in self.others and bool(
            missing(self.params, [rung], self.experiments, Outcome())
        )

    def look(self) -> None:
        """Notes the rungs that have come, and a failed row for each that will not."""
        rungs, missed = self.stream.look()
        self.waiting += [rung for rung in rungs if rung.name not in self.others]
        for rung, error in missed:
            if rung.name not in self.others:
                _fail(self, {"checkpoint": rung.name, "step": rung.step, "seeds": []}, error)

    def claim(self) -> None:
        """Takes the first of the rungs that wait and are no other sweep's, and adds its jobs.

        Only now are the records looked at: what somebody else had under way a moment ago is there by now.
        """
        for rung in [*self.waiting]:
            if not self.claims.take(rung):
                continue
            self.waiting.remove(rung)
            self.units = missing(self.params, [rung], self.experiments, self.outcome)
            self.left[rung.name] = len(self.units)
            if self.units:
                return
            self._settled(rung)

    def is_open(self) -> bool:
        """Whether there is, or may come, something to do."""
        return bool(self.units or self.waiting) or self.filling != "done" or not self.stream.is_done()

    def finished(self, unit: Unit) -> None:
        """Notes that a unit is settled."""
        self.left[unit.checkpoint.name] -= 1
        if not self.left[unit.checkpoint.name]:
            self._settled(unit.checkpoint)

    def _settled(self, rung: Checkpoint) -> None:
        """Nobody here needs the rung's files any more; they go, if they go, before another sweep may want them."""
        self.stream.release(rung)
        self.claims.give_back(rung)

    def total(self) -> int:
        """How many jobs the plan has, or will have, done and found ones among them."""
        seeds = sum(len(jobs.seeds(self.params, experiment)) for experiment in self.experiments)
        ladder = self.stream.known() if self.shard else None
        return seeds * (len(self.shard.names(ladder)) if ladder else self.stream.expected())

    def close(self) -> None:
        """Stops what the stream has in the background, and leaves the rungs to others."""
        self.stream.close()
        self.claims.close()


class Pipeline:
    """The schedule of several plans: the making of a ladder is one task, and a rung's jobs follow when it is there.

    Plans are finished one after another as far as there is work: a worker takes the first task of the first plan that
    has one.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        for plan in plans:
            plan.open()

    def take(self) -> tuple[tuple[Plan, Unit | None], tuple[Unit | Stream]] | None:
        """The next task, and of which plan and unit it is (None: the making of its ladder)."""
        for plan in self.plans:
            if plan.filling == "waiting":
                plan.filling = "running"
                return (plan, None), (plan.stream,)
            if not plan.units:
                plan.look()
                plan.claim()
            if plan.units:
                unit = plan.units.pop(0)
                return (plan, unit), (unit,)
        return None

    def is_open(self) -> bool:
        """Whether ``take`` may still give something, now or later."""
        return any(plan.is_open() for plan in self.plans)

    def close(self) -> None:
        """Closes the plans."""
        for plan in self.plans:
            plan.close()


Result = tuple[Plan, Unit | None, Answer | None, str | None]
"""What comes back: of which plan and unit (None: its ladder), the answer, or what went wrong in a line."""


def sweep(
    params: ScaleParameters,
    *,
    experiments: Sequence[Experiment] = EXPERIMENTS,
    ladder: Ladder | None = None,
    shard: Shard | None = None,
    **how: Any,
) -> Outcome:
    """Runs every job whose record is missing and writes its record at once; ``how`` as in :func:`sweep_all`.

    ``ladder`` is that of the parameters, where it is open already. With a ``shard`` only its rungs are worked on, and
    the failures are in a file of its own, ``failures-1-of-8.json``.
    """
    plan = Plan(params, experiments, stream=jobs.stream(params, ladder), shard=shard)
    sweep_all([plan], **how)
    return plan.outcome


def sweep_all(
    plans: Sequence[Plan],
    *,
    engine: str = "local",
    address: str | None = None,
    gpus_per_job: float | None = None,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Runs every job of the plans whose record is missing and writes its record at once; each plan has its outcome.

    ``engine`` is ``"local"`` (in this process, or in ``workers`` processes if more than one) or ``"ray"`` (needs the
    extra ``cluster``; ``address`` joins a cluster, and every job has ``gpus_per_job`` GPUs, by default one if the
    parameters ask for CUDA). Records do not depend on the choice, nor on other sweeps in the same folder.
    The failures of this sweep are also written to ``RUN_DIR/failures.json``.
    """
    preflight.require_engine(engine)
    folders = sorted({store_of(plan.params).folder for plan in plans})
    for folder in folders:  # rather than find out when the first job is done
        for inner in (folder.parent, folder, *(folder / name for name in (_CLAIMS, *jobs.MODULES))):
            require_writable(inner)
        for experiment in jobs.MODULES:
            clear_parts(folder / experiment)
    how = {"workers": workers, "progress": progress, "address": address, "gpus_per_job": gpus_per_job}
    with closing(Pipeline(plans)) as pipeline, closing(_ENGINES[engine](pipeline, **how)) as answers:
        _collect(plans, answers, progress)
    for name in sorted({_failures_file(plan) for plan in plans}):
        rows = [row for plan in plans if _failures_file(plan) == name for row in plan.outcome.failed]
        write_text(name, json.dumps(rows, indent=1) + "\n")


def _failures_file(plan: Plan) -> Path:
    name = f"failures-{plan.shard}.json" if plan.shard else "failures.json"
    return store_of(plan.params).folder.parent / name


def _collect(plans: Sequence[Plan], answers: Iterator[Result], progress: bool) -> None:
    """Writes what comes back at once. A job without a result, or with one that is not finite, becomes a failed row.

    A record that cannot be written (a full disk) ends the sweep with one line: no later one could be kept either, and
    what is there stays.
    """
    with tqdm(desc="jobs", unit="job", total=sum(p.total() for p in plans), disable=not progress) as bar:
        for plan, unit, answer, error in answers:
            if unit is None:
                _ladder_done(plan, error)
            else:
                bar.set_postfix_str(f"{plan.name} {unit.experiment} {unit.checkpoint.name}", refresh=False)
                for seeds, failure in _failures(plan, unit, answer, error):
                    plan.outcome.failed.append(failed_row(unit, seeds, failure, plan.name))
                    tqdm.write(f"failed: {plan.outcome.problems()[-1]}", file=sys.stderr)
                    plan.outcome.done -= len(seeds)
                plan.outcome.done += len(unit.keys)
                plan.finished(unit)
            bar.update(sum(p.outcome.finished() for p in plans) - bar.n)


def _ladder_done(plan: Plan, error: str | None) -> None:
    plan.look()
    plan.filling = "done"
    if error is not None:
        _fail(plan, {"checkpoint": plan.name or "tiny", "step": None, "seeds": []}, error)


def _fail(plan: Plan, row: dict[str, Any], error: str) -> None:
    """A row for what is wrong with a ladder, or with one rung of it, before any job."""
    plan.outcome.failed.append({"experiment": "ladder", **row, "error": error})
    tqdm.write(f"failed: {plan.outcome.problems()[-1]}", file=sys.stderr)


def _failures(plan, unit: Unit, answer: Answer | None, error: str | None) -> Iterator[tuple[list[int], str]]:
    """Writes the unit's records and notes their alarms; the seeds that have none, and why."""
    if error is not None:
        yield list(unit.keys), error
        return
    results, origin = answer
    store = store_of(plan.params)
    for seed, key in unit.keys.items():
        try:
            store.put(unit.experiment, key, record(unit, seed, results[seed], origin))
        except ValueError as wrong:
            yield [seed], f"seed {seed}: {wrong}"
        else:
            plan.outcome.note(unit.experiment, unit.checkpoint.step, seed, results[seed])


def _local(pipeline: Pipeline, *, workers: int, progress: bool, **_: Any) -> Iterator[Result]:
    """In this process, or in ``workers`` others."""
    if workers == 1:
        while pipeline.is_open():
            if (found := pipeline.take()) is None:
                time.sleep(_MOMENT)
                continue
            (plan, unit), (task,) = found
            yield plan, unit, *attempt(partial(perform, progress=progress), (task,))
    else:
        for (plan, unit), answer, error in run_each(perform, pipeline, workers=workers):
            yield plan, unit, answer, error


def perform(task: Unit | Stream, *, progress: bool = False) -> Answer | None:
    """What a worker does: the jobs of a unit, or the making of a ladder, whose checkpoints are its answer."""
    if isinstance(task, Unit):
        return work(task)
    task.fill(progress=progress)
    return None


def _ray(
    pipeline: Pipeline, *, address: str | None, gpus_per_job: float | None, **_: Any
) -> Iterator[Result]:
    from replicate.runs import ray_engine

    how = {"address": address, "gpus_per_job": gpus_per_job}
    for (plan, unit), answer, error in ray_engine.run_each(pipeline, **how):
        yield plan, unit, answer, error


_ENGINES = {"local": _local, "ray": _ray}


def run_folder(params: ScaleParameters) -> Path:
    """Where this run's results go."""
    return paths.resolve(params.RUN_DIR)
