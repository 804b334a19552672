"""Running all jobs of one or several sets of parameters: what is done is not done again, what fails is reported and
passed over. A tiny ladder is trained while jobs run on those of its rungs that are there already."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from replicate.files import clear_parts, require_writable, write_text
from replicate.ladder.checkpoints import Ladder
from replicate.runs import jobs, paths, preflight
from replicate.runs.jobs import EXPERIMENTS, Experiment
from replicate.runs.params import ScaleParameters
from replicate.runs.units import Answer, Outcome, Unit, failed_row, missing, record, store_of, work
from replicate.runs.workers import attempt, error_line, run_each


@dataclass
class Plan:
    """A set of parameters under way: the jobs of which rungs are known, what waits, what became of the rest.

    ``name`` is said of its jobs; ``training`` is the state of its ladder, ``"done"`` once no more rungs will come.
    """

    params: ScaleParameters
    experiments: Sequence[Experiment]
    name: str = ""
    ladder: Ladder | None = None
    training: str = "waiting"
    units: list[Unit] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    outcome: Outcome = field(default_factory=Outcome)

    def look(self) -> None:
        """Adds the jobs of rungs that have come."""
        rungs = self.ladder or jobs.rungs_so_far(self.params)
        new = [rung for rung in rungs if rung.name not in self.seen]
        self.seen |= {rung.name for rung in new}
        self.units += missing(self.params, new, self.experiments, self.outcome)

    def train(self, *, progress: bool) -> None:
        """Opens the ladder, training it in this process if it is not there, and adds its jobs."""
        self.ladder, self.training = self.ladder or jobs.ladder(self.params, progress=progress), "done"
        self.look()

    def total(self) -> int:
        """How many jobs the plan has, or will have, done and found ones among them."""
        seeds = sum(len(jobs.seeds(self.params, experiment)) for experiment in self.experiments)
        return seeds * (len(self.ladder) if self.ladder else jobs.expected_rungs(self.params))


class _Pipeline:
    """The schedule of several plans: each ladder is trained as one task, and a rung's jobs follow when it is there.

    Plans are finished one after another as far as there is work: a worker takes the first task of the first plan that
    has one.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        for plan in plans:
            if plan.ladder or jobs.is_there(plan.params):
                plan.train(progress=False)

    def take(self) -> tuple[tuple[Plan, Unit | None], tuple[Any]] | None:
        for plan in self.plans:
            if plan.training == "waiting":
                plan.training = "running"
                return (plan, None), (plan.params,)
            if not plan.units and plan.training == "running":
                plan.look()
            if plan.units:
                unit = plan.units.pop(0)
                return (plan, unit), (unit,)
        return None

    def is_open(self) -> bool:
        return any(plan.training != "done" or plan.units for plan in self.plans)


Result = tuple[Plan, Unit | None, Answer | None, str | None]
"""What comes back: of which plan and unit (None: its ladder), the answer, or what went wrong in a line."""


def sweep(
    params: ScaleParameters,
    *,
    experiments: Sequence[Experiment] = EXPERIMENTS,
    ladder: Ladder | None = None,
    **how: Any,
) -> Outcome:
    """Runs every job whose record is missing and writes its record at once; ``how`` as in :func:`sweep_all`."""
    plan = Plan(params, experiments, ladder=ladder)
    sweep_all([plan], **how)
    return plan.outcome


def sweep_all(
    plans: Sequence[Plan],
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Runs every job of the plans whose record is missing and writes its record at once; each plan has its outcome.

    ``engine`` is ``"local"`` (in this process, or in ``workers`` processes if more than one) or ``"ray"`` (needs the
    extra ``cluster``; ``address`` joins a cluster). Records do not depend on the choice.
    The failures of this sweep are also written to ``RUN_DIR/failures.json``.
    """
    preflight.require_engine(engine)
    folders = sorted({store_of(plan.params).folder for plan in plans})
    for folder in folders:  # rather than find out when the first job is done
        for inner in (folder.parent, folder, *(folder / experiment for experiment in EXPERIMENTS)):
            require_writable(inner)
    with ExitStack() as locks:  # a second sweep of the same run waits, then finds the records
        for folder in folders:
            locks.enter_context(FileLock(folder / ".lock"))
            for experiment in EXPERIMENTS:
                clear_parts(folder / experiment)
        if engine == "ray":
            answers = _ray(plans, address, progress)
        else:
            answers = _local(plans, progress) if workers == 1 else _processes(plans, workers)
        with closing(answers):
            _collect(plans, answers, progress)
    for folder in folders:
        rows = [
            row for plan in plans if store_of(plan.params).folder == folder for row in plan.outcome.failed
        ]
        write_text(folder.parent / "failures.json", json.dumps(rows, indent=1) + "\n")


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
            bar.update(sum(p.outcome.finished() for p in plans) - bar.n)


def _ladder_done(plan: Plan, error: str | None) -> None:
    plan.look()
    plan.training = "done"
    if error is not None:
        row = {"experiment": "ladder", "checkpoint": plan.name or "tiny", "step": None, "seeds": []}
        plan.outcome.failed.append({**row, "error": error})
        tqdm.write(f"failed: {plan.outcome.problems()[-1]}", file=sys.stderr)


def _failures(plan, unit: Unit, answer: Answer | None, error: str | None) -> Iterator[tuple[list[int], str]]:
    """Writes the unit's records; the seeds that have none, and why."""
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


def _local(plans: Sequence[Plan], progress: bool) -> Iterator[Result]:
    for plan in plans:
        yield from _open(plan, progress)
        while plan.units:
            unit = plan.units.pop(0)
            yield plan, unit, *attempt(work, (unit,))


def _open(plan: Plan, progress: bool) -> Iterator[Result]:
    """Opens a plan's ladder in this process; one that has to be trained for that comes back as from a worker."""
    if plan.ladder or jobs.is_there(plan.params):
        plan.train(progress=progress)
    else:
        yield plan, None, *attempt(partial(plan.train, progress=progress), ())


def _processes(plans: Sequence[Plan], count: int) -> Iterator[Result]:
    for (plan, unit), answer, error in run_each(perform, _Pipeline(plans), workers=count):
        yield plan, unit, answer, error


def perform(task: Unit | ScaleParameters) -> Answer | None:
    """What a worker does: the jobs of a unit, or the training of a ladder, whose checkpoints are its answer."""
    if isinstance(task, Unit):
        return work(task)
    jobs.ladder(task, progress=False)
    return None


def _ray(plans: Sequence[Plan], address: str | None, progress: bool) -> Iterator[Result]:
    import ray

    ray.init(address=address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    waiting = {}
    for plan in plans:
        yield from _open(plan, progress)
        # Every job uses its fixed number of threads, and a GPU where the parameters ask for one.
        remote = ray.remote(num_cpus=1, num_gpus=int(plan.params.DEVICE.startswith("cuda")))(attempt)
        while plan.units:
            unit = plan.units.pop(0)
            waiting[remote.remote(work, (unit,))] = (plan, unit)
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        plan, unit = waiting.pop(ready)
        try:
            yield plan, unit, *ray.get(ready)
        except ray.exceptions.RayError as error:  # the worker died; the other jobs go on
            yield plan, unit, None, error_line(error)


def run_folder(params: ScaleParameters) -> Path:
    """Where this run's results go."""
    return paths.resolve(params.RUN_DIR)
