"""The unit of work: one checkpoint x one seed x one experiment, a pure function of settings and weights.

An experiment is a module with ``SETTINGS``, the names of those parameters that decide its result, and ``run``, which is
given exactly these: it cannot read what is not in its records' keys. A change of the learning rate leaves every
measurement valid, a change of the output folder everything, and a change of code what its module imports
(:mod:`replicate.identity`).
"""

from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args

from replicate import identity
from replicate.ladder.checkpoints import Checkpoint, Ladder, open_ladder
from replicate.ladder.corpus import Mixture
from replicate.ladder.pretrain import TinyLadder, train
from replicate.rl.prompts import Prompts
from replicate.runs import measurement, paths, provenance, response
from replicate.runs import prompts as prompt_draws
from replicate.runs.params import ScaleParameters

Experiment = Literal["measure", "rl"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

_MODULES: dict[Experiment, ModuleType] = {"measure": measurement, "rl": response}


def ladder(params: ScaleParameters, *, progress: bool = True) -> Ladder:
    """The ladder the parameters name: the tiny one (trained if it is not there yet) or a folder of snapshots."""
    if params.LADDER != "tiny":
        return open_ladder(
            params.LADDER if params.LADDER.startswith("hub:") else paths.resolve(params.LADDER)
        )
    folder, origin = paths.resolve(params.LADDER_DIR), provenance.environment()
    return train(tiny_ladder(params), folder, progress=progress, origin=origin)


def tiny_ladder(params: ScaleParameters) -> TinyLadder:
    """The tiny ladder's own parameters."""
    return TinyLadder(
        seed=params.SEED,
        steps=params.TINY_STEPS,
        every=params.TINY_EVERY,
        layers=params.TINY_LAYERS,
        hidden=params.TINY_HIDDEN,
        heads=params.TINY_HEADS,
        context=params.TINY_CONTEXT,
        batch=params.TINY_BATCH,
        learning_rate=params.TINY_LEARNING_RATE,
        mixture=Mixture(
            records=params.TINY_RECORDS, label_documents=params.TINY_LABEL_DOCUMENTS, labels=params.LABELS
        ),
    )


def seeds(params: ScaleParameters, experiment: Experiment) -> list[int]:
    """The seeds that an experiment runs at each checkpoint."""
    return list(params.RL_SEEDS) if experiment == "rl" else [params.SEED]


def settings(params: ScaleParameters, experiment: Experiment) -> dict[str, Any]:
    """Those parameters that decide the experiment's result."""
    return {name: getattr(params, name) for name in _MODULES[experiment].SETTINGS}


def module_of(experiment: Experiment) -> str:
    """The dotted name of the module that computes the experiment."""
    return _MODULES[experiment].__name__


def digest(experiment: Experiment) -> str:
    """The digest of the code that computes the experiment."""
    return identity.digest(module_of(experiment))


def maker(experiment: Experiment) -> dict[str, Any]:
    """What decides the experiment's result here besides settings and weights: code, libraries, kernels."""
    return identity.identity(module_of(experiment))


def run(
    experiment: Experiment, settings: Mapping[str, Any], checkpoint: Checkpoint, wanted: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Runs the jobs of one checkpoint and experiment; results by seed."""
    return _MODULES[experiment].run(SimpleNamespace(**settings), checkpoint, list(wanted))


def prompts(params: ScaleParameters, checkpoint: Checkpoint, which: Literal["pool", "eval"]) -> Prompts:
    """The prompts that RL draws from, or the held-out ones; a function of the parameters and the tokenizer alone."""
    return prompt_draws.draw(SimpleNamespace(**settings(params, "rl")), checkpoint, which)
