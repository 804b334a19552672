"""The unit of work: one checkpoint x one seed x one experiment, a pure function of settings and weights.

An experiment is a module with ``Settings``, the sections of parameters that decide its result (``task`` and ``machine``
among them), and ``run``, which is given exactly these: it cannot read what is not in its records' keys. A change of the
learning rate leaves every measurement valid, a change of the output folder everything, and a change of code what its
module and its task's do not import (:mod:`replicate.identity`).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from replicate import identity
from replicate.ladder import sources
from replicate.ladder.checkpoints import Checkpoint, Ladder
from replicate.ladder.sources import Request
from replicate.ladder.stream import Stream
from replicate.rl import methods, tasks
from replicate.rl.prompts import Prompts
from replicate.runs import forecast, longer, measurement, paths, prompts, provenance, response
from replicate.runs.params import ScaleParameters
from replicate.settings.hub import Hub
from replicate.settings.run import Run
from replicate.settings.task import Task
from replicate.settings.tiny_ladder import TinyLadder

Experiment = Literal["measure", "rl", "forecast", "longer"]

MODULES: dict[Experiment, ModuleType] = {
    "measure": measurement,
    "rl": response,
    "forecast": forecast,
    "longer": longer,
}
EXPERIMENTS: tuple[Experiment, ...] = ("measure", "rl", "forecast")
"""What a sweep runs unless it is told otherwise; "longer" is asked for by the study of longer answers."""


def request(params: ScaleParameters, *, progress: bool = False) -> Request:
    """What the parameters tell the ladder's source; relative paths are those of :mod:`replicate.runs.paths`."""
    run, hub = params.section(Run), params.section(Hub)
    return Request(
        paths.ladder(run.ladder),
        folder=paths.resolve(run.ladder_dir),
        tiny=params.section(TinyLadder),
        hub=hub.model_copy(update={"lock": str(paths.resolve(hub.lock))}),
        origin=provenance.environment(),
        progress=progress,
    )


def ladder(params: ScaleParameters, *, progress: bool = True) -> Ladder:
    """The whole ladder that the parameters name: the tiny one (trained if it is not there yet) or another source's."""
    asked = request(params, progress=progress)
    return sources.of(asked.spec).open(asked)


def stream(params: ScaleParameters, ladder: Ladder | None = None) -> Stream:
    """The same ladder, as a stream of rungs; ``ladder`` is that ladder where it is open already."""
    asked = request(params)
    return sources.of(asked.spec).stream(asked, ladder)


def is_there(params: ScaleParameters) -> bool:
    """Whether the ladder can be opened without training."""
    return not stream(params).has_task()


def seeds(params: ScaleParameters, experiment: Experiment) -> list[int]:
    """The seeds that an experiment runs at each checkpoint."""
    return list(params.RL_SEEDS) if experiment == "rl" else [params.SEED]


def settings(params: ScaleParameters, experiment: Experiment) -> BaseModel:
    """Those sections of the parameters that decide the experiment's result."""
    wanted = MODULES[experiment].Settings
    return wanted(**{name: params.section(info.annotation) for name, info in wanted.model_fields.items()})


def maker(experiment: Experiment, settings: BaseModel) -> dict[str, Any]:
    """What decides the experiment's result here besides settings and weights: code, libraries, kernels."""
    return identity.identity(*code(experiment, settings))


def code(experiment: Experiment, settings: BaseModel) -> tuple[str, ...]:
    """The dotted names of the modules that compute the experiment: its own, its task's, and its method's if it runs
    RL."""
    named = [MODULES[experiment].__name__, f"{tasks.__name__}.{settings.task.task}"]
    grpo = getattr(settings, "grpo", None)
    return (*named, f"{methods.__name__}.{grpo.method}") if grpo else tuple(named)


def run(
    experiment: Experiment, settings: BaseModel, checkpoint: Checkpoint, wanted: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Runs the jobs of one checkpoint and experiment; results by seed."""
    return MODULES[experiment].run(settings, checkpoint, list(wanted))


def held_out(params: ScaleParameters, checkpoint: Checkpoint) -> Prompts:
    """The held-out prompts, on the parameters' device."""
    return prompts.held_out(params.section(Task), checkpoint, params.DEVICE)


def measured(params: ScaleParameters, checkpoint: Checkpoint) -> Prompts:
    """The prompts on which a checkpoint is measured, on the parameters' device."""
    return prompts.measured(params.section(Task), checkpoint, params.DEVICE)


def pool(params: ScaleParameters, checkpoint: Checkpoint) -> Prompts:
    """The prompts that RL draws from, on the parameters' device."""
    return prompts.pool(params.section(Task), params.POOL_PROMPTS, checkpoint, params.DEVICE)
