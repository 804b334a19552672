"""The prompts of the jobs: a function of the task's settings and the checkpoint's tokenizer alone.

Three sets that share no prompt: what RL is evaluated on, what a checkpoint is measured on, what RL learns from. So the
reward before RL that a measurement reports has none of the noise of the gain it is set beside.
"""

import numpy as np
import torch

from replicate.ladder.checkpoints import Checkpoint
from replicate.rl import tasks
from replicate.rl.prompts import Prompts
from replicate.settings.task import Task

_HELD_OUT, _POOL, _MEASURED = 11, 12, 13  # streams of random numbers


def held_out(task: Task, checkpoint: Checkpoint, device: str) -> Prompts:
    """The prompts on which RL is evaluated."""
    return _draw(task, checkpoint, task.eval_prompts, _HELD_OUT).to(device)


def measured(task: Task, checkpoint: Checkpoint, device: str) -> Prompts:
    """The prompts on which a checkpoint is measured; ``ValueError`` if all that are drawn are held out."""
    taken = set(held_out(task, checkpoint, "cpu").text)
    return _free("MEASURE_PROMPTS", task, task.measure_prompts, checkpoint, _MEASURED, taken).to(device)


def pool(task: Task, count: int, checkpoint: Checkpoint, device: str) -> Prompts:
    """The prompts that RL draws from: ``count``, less those of the other two sets; ``ValueError`` if none is left."""
    taken = {text for others in (held_out, measured) for text in others(task, checkpoint, "cpu").text}
    return _free("POOL_PROMPTS", task, count, checkpoint, _POOL, taken).to(device)


def _free(name: str, task: Task, count: int, checkpoint: Checkpoint, stream: int, taken: set[str]) -> Prompts:
    drawn = _draw(task, checkpoint, count, stream)
    free = [i for i, text in enumerate(drawn.text) if text not in taken]
    if not free:
        raise ValueError(
            f"{name}: all {len(drawn)} prompts drawn are used to evaluate or to measure; raise FILLER or lower "
            "EVAL_PROMPTS"
        )
    return drawn.select(torch.tensor(free))


def _draw(task: Task, checkpoint: Checkpoint, count: int, stream: int) -> Prompts:
    rng = np.random.default_rng((task.seed, stream))
    return tasks.get(task.task).draw(checkpoint.tokenizer(), count, settings=task, rng=rng)
