"""The engine ``ray``: a unit of work is one remote task, here or on a cluster. It needs the extra ``cluster``."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from replicate.runs.sweep import Pipeline, Plan, perform
from replicate.runs.units import Answer, Unit
from replicate.runs.workers import attempt, error_line

_MOMENT = 0.1  # seconds between two looks for rungs that are on their way

Named = tuple[Plan, Unit | None]


def run_each(
    pipeline: Pipeline, *, address: str | None, progress: bool
) -> Iterator[tuple[Named, Answer | None, str | None]]:
    """Every task of the pipeline, as its answers come: whose it is, the answer, or what went wrong in a line.

    A ladder is made in this process; rungs are expected to be on a disk that every node sees.
    """
    import ray

    ray.init(address=address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    waiting: dict[Any, Named] = {}
    while waiting or pipeline.is_open():
        while (found := pipeline.take()) is not None:
            name, (task,) = found
            if name[1] is None:
                yield name, *attempt(partial(perform, progress=progress), (task,))
                continue
            # Every job uses its fixed number of threads, and a GPU where the parameters ask for one.
            gpus = int(name[0].params.DEVICE.startswith("cuda"))
            waiting[ray.remote(num_cpus=1, num_gpus=gpus)(attempt).remote(perform, (task,))] = name
        if not waiting:
            time.sleep(_MOMENT)
            continue
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_MOMENT if pipeline.is_open() else None)
        for ref in ready:
            name = waiting.pop(ref)
            try:
                yield name, *ray.get(ref)
            except ray.exceptions.RayError as error:  # the worker died; the other jobs go on
                yield name, None, error_line(error)
