"""The unit of work: one checkpoint x one seed x one experiment, a pure function of parameters and weights.

Each job's *settings* are those parameters that decide its result, and no others: a change of the learning rate leaves
every measurement valid, a change of the output folder everything.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from replicate import impact
from replicate.ladder.checkpoints import Checkpoint, Ladder, open_ladder
from replicate.ladder.corpus import Mixture
from replicate.ladder.pretrain import TinyLadder, fixed_threads, train
from replicate.lm import trainer
from replicate.lm.policy import SinglePolicy, StackedPolicy
from replicate.lm.task import Prompts, evaluate, label_copying
from replicate.runs import paths
from replicate.runs.params import ScaleParameters

Experiment = Literal["measure", "rl"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

_TASK = ("SEED", "LABELS", "FILLER", "EVAL_PROMPTS", "DEVICE", "DTYPE")
_SETTINGS: dict[Experiment, tuple[str, ...]] = {
    "measure": (*_TASK, "MEASURE_PROMPTS", "MEASURE_GROUP", "MEASURE_LAYERS", "SIGMA"),
    "rl": (
        *(
            *_TASK,
            "POOL_PROMPTS",
            "BUDGETS",
            "PROMPTS",
            "GROUP_SIZE",
            "LEARNING_RATE",
            "BASELINE",
            "SCALE",
            "CLIP",
        ),
        *("KL_COEF", "ITERATIONS", "MAX_GRAD_NORM", "STACK_SEEDS"),
    ),
}


def ladder(params: ScaleParameters, *, progress: bool = True) -> Ladder:
    """The ladder the parameters name: the tiny one (trained if it is not there yet) or a folder of snapshots."""
    if params.LADDER != "tiny":
        return open_ladder(
            params.LADDER if params.LADDER.startswith("hub:") else paths.resolve(params.LADDER)
        )
    return train(tiny_ladder(params), paths.resolve(params.LADDER_DIR), progress=progress)


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
    return {name: getattr(params, name) for name in _SETTINGS[experiment]}


def run(
    params: ScaleParameters,
    checkpoint: Checkpoint,
    experiment: Experiment,
    wanted: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """Runs the jobs of one checkpoint and experiment; results by seed."""
    with fixed_threads():
        if experiment == "measure":
            return {seed: _measure(params, checkpoint, seed) for seed in wanted}
        return _rl(params, checkpoint, list(wanted))


def _measure(params: ScaleParameters, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    model = checkpoint.model(dtype=getattr(torch, params.DTYPE), device=params.DEVICE)
    held_out = prompts(params, checkpoint, "eval")
    found = evaluate(model, held_out)
    chosen = held_out.select(torch.arange(min(params.MEASURE_PROMPTS, len(held_out))))
    readings = []
    for layer in params.MEASURE_LAYERS:
        for policy in get_args(impact.PolicyName):
            # The same stream for every reading: matched samples.
            measured = impact.components_by_advantage(
                model,
                chosen.tokens,
                chosen.labels,
                layer=layer,
                group_size=params.MEASURE_GROUP,
                policy=policy,
                generator=torch.Generator(device=params.DEVICE).manual_seed(seed),
                vocab=chosen.vocab,
                sigma=params.SIGMA,
            )
            for advantage, found_here in measured.items():
                row = {name: value for name, value in vars(found_here).items() if name != "per_prompt"}
                readings.append({"layer": layer, "policy": policy, "advantage": advantage, **row})
    return {
        "reward": found.correct.double().mean().item(),
        "label_mass": found.label_mass.double().mean().item(),
        "entropy": found.entropy.double().mean().item(),
        "top": found.top.double().mean().item(),
        "gradient_norm_squared": impact.gradient_norm_squared(model, chosen),
        "readings": readings,
    }


def _rl(params: ScaleParameters, checkpoint: Checkpoint, wanted: list[int]) -> dict[int, dict[str, Any]]:
    pool, held_out = prompts(params, checkpoint, "pool"), prompts(params, checkpoint, "eval")
    config = trainer.GRPO(
        prompts=params.PROMPTS,
        group=params.GROUP_SIZE,
        learning_rate=params.LEARNING_RATE,
        baseline=params.BASELINE,
        scale=params.SCALE,
        clip=params.CLIP,
        kl_coef=params.KL_COEF,
        iterations=params.ITERATIONS,
        max_grad_norm=params.MAX_GRAD_NORM,
    )
    curves = []
    # One lane alone goes through other kernels than two or more, with other last bits: give it company.
    together = (
        [wanted + wanted[:1] if len(wanted) == 1 else wanted] if params.STACK_SEEDS else [[s] for s in wanted]
    )
    for batch in together:
        policy, reference = _policies(params, checkpoint, len(batch))
        curves += trainer.train(
            policy, reference, pool, held_out, config, seeds=batch, budgets=sorted(params.BUDGETS)
        )
    return {
        c.seed: {"budgets": {str(n): m for n, m in c.budgets.items()}, "updates": c.updates} for c in curves
    }


def _policies(params: ScaleParameters, checkpoint: Checkpoint, lanes: int):
    """The policy that is trained and a frozen reference (the policy itself where the KL weighs nothing)."""
    dtype = getattr(torch, params.DTYPE)

    def fresh():
        if params.STACK_SEEDS:
            return StackedPolicy(
                checkpoint.model(dtype=dtype, device=params.DEVICE, attention="eager"), lanes
            )
        return SinglePolicy(checkpoint.model(dtype=dtype, device=params.DEVICE))

    policy = fresh()
    return policy, fresh() if params.KL_COEF else policy


def prompts(params: ScaleParameters, checkpoint: Checkpoint, which: Literal["pool", "eval"]) -> Prompts:
    """The prompts that RL draws from, or the held-out ones; a function of the parameters and the tokenizer alone."""
    held_out = _draw(params, checkpoint, params.EVAL_PROMPTS, stream=11)
    if which == "eval":
        return held_out
    pool = _draw(params, checkpoint, params.POOL_PROMPTS, stream=12)
    taken = set(held_out.text)
    return pool.select(torch.tensor([i for i, text in enumerate(pool.text) if text not in taken]))


def _draw(params: ScaleParameters, checkpoint: Checkpoint, count: int, *, stream: int) -> Prompts:
    rng = np.random.default_rng((params.SEED, stream))
    drawn = label_copying(checkpoint.tokenizer(), count, labels=params.LABELS, filler=params.FILLER, rng=rng)
    return drawn.to(params.DEVICE)
