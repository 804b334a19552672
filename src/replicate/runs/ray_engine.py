"""The engine ``ray``: a unit of work is one remote task, here or on a cluster. It needs the extra ``cluster``.

A task whose worker or node dies is given to another, :data:`TRIES` times in all; then its jobs are failed rows. The
driver, this process, keeps the records as they come: started again, it finds them and goes on.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from replicate.runs.sweep import Pipeline, Plan, perform
from replicate.runs.units import Answer, Unit
from replicate.runs.workers import attempt, error_line

TRIES = 3
"""Deaths of a worker over one task before it is given up: most come from what else is on the node, memory first."""
_MOMENT = 0.3  # seconds between two looks for rungs that are on their way
_AHEAD = 2  # tasks handed over for each that can run, so that no worker waits for the driver

Named = tuple[Plan, Unit | None]
_Task = tuple[Named, Sequence[Any], int]
"""Whose the task is, what it is given, and the how manyth try this is."""


def run_each(
    pipeline: Pipeline, *, address: str | None, gpus_per_job: float | None
) -> Iterator[tuple[Named, Answer | None, str | None]]:
    """Every task of the pipeline, as its answers come: whose it is, the answer, or what went wrong in a line.

    A job has one CPU, as it computes on one thread, and ``gpus_per_job`` GPUs (None: one if the parameters ask for
    CUDA); the making of a ladder has one CPU. The ladder is expected on a disk that every node sees. Raises
    ``ValueError`` if this machine, where it is to do the work, lacks the GPUs.
    """
    import ray

    def submit(task: _Task) -> None:
        (plan, unit), given, _ = task
        remote = remote_attempt.options(num_gpus=gpus[id(plan)] if unit else 0)
        under_way[remote.remote(perform, given)] = task

    with _session(address):
        # Ray's own retries are silent, and without bound where memory runs out. One function for all tasks: a worker
        # that is there takes the next one only of a function that it has run.
        remote_attempt = ray.remote(num_cpus=1, max_retries=0)(attempt)
        gpus = {id(plan): _gpus(plan, gpus_per_job) for plan in pipeline.plans}
        room = _AHEAD * _slots(max(gpus.values()), address)
        under_way: dict[Any, _Task] = {}
        while under_way or pipeline.is_open():
            while len(under_way) < room and (found := pipeline.take()) is not None:
                submit((*found, 1))
            if not under_way:
                time.sleep(_MOMENT)
                continue
            # A rung may come, and another sweep's claim may end, without an answer to anything from here.
            ready, _ = ray.wait([*under_way], timeout=_MOMENT)
            for reference in ready:
                name, task, tries = under_way.pop(reference)
                try:
                    answer, error = ray.get(reference)
                except ray.exceptions.RayTaskError as failed:
                    # It never began: mostly that node has other code.
                    answer, error = None, error_line(failed)
                except ray.exceptions.RayError as died:
                    if tries < TRIES:
                        submit((name, task, tries + 1))
                        continue
                    answer, error = None, f"its worker died {TRIES} times: {error_line(died)}"[:300]
                yield name, answer, error


def _gpus(plan: Plan, asked: float | None) -> float:
    """How many GPUs each job of the plan has."""
    return float(plan.params.DEVICE.startswith("cuda")) if asked is None else asked


def _slots(gpus: float, address: str | None) -> int:
    """How many jobs can run at a time. A cluster may grow; this machine's GPUs are all that it will have."""
    import ray

    there = ray.cluster_resources()
    if gpus > there.get("GPU", 0) and address is None:
        remedy = "give --gpus-per-job 0, DEVICE=cpu, or the --address of a cluster"
        raise ValueError(f"--gpus-per-job: expected at most {there.get('GPU', 0):g}, got {gpus:g}; {remedy}")
    slots = min(there.get("CPU", 1), there.get("GPU", 0) / gpus) if gpus else there.get("CPU", 1)
    return max(1, int(slots))


@contextmanager
def _session(address: str | None) -> Iterator[None]:
    """Ray as it is if it is there already; else begun, on this machine or by joining a cluster, and ended after use."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Kernels and folders are chosen by these; a worker that computes otherwise is refused (units.work).
    environment = {name: value for name, value in os.environ.items() if name.startswith("REPLICATE_")}
    options = {"log_to_driver": False, "include_dashboard": False, "runtime_env": {"env_vars": environment}}
    ray.init(address=address, **options)
    try:
        yield
    finally:
        ray.shutdown()
