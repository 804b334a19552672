"""The prompts of the jobs: a function of the task's settings and the checkpoint's tokenizer alone."""

import numpy as np
import torch

from replicate.ladder.checkpoints import Checkpoint
from replicate.rl import tasks
from replicate.rl.prompts import Prompts
from replicate.settings.task import Task

_HELD_OUT, _POOL = 11, 12  # streams of random numbers


def held_out(task: Task, checkpoint: Checkpoint, device: str) -> Prompts:
    """The prompts on which a checkpoint is measured and RL is evaluated."""
    return _draw(task, checkpoint, task.eval_prompts, _HELD_OUT).to(device)


def pool(task: Task, count: int, checkpoint: Checkpoint, device: str) -> Prompts:
    """The prompts that RL draws from: ``count``, less those that are held out; ``ValueError`` if none is left."""
    drawn = _draw(task, checkpoint, count, _POOL)
    taken = set(held_out(task, checkpoint, "cpu").text)
    free = [i for i, text in enumerate(drawn.text) if text not in taken]
    if not free:
        raise ValueError(
            f"POOL_PROMPTS: all {len(drawn)} prompts drawn are held out; raise FILLER or lower EVAL_PROMPTS"
        )
    return drawn.select(torch.tensor(free)).to(device)


def _draw(task: Task, checkpoint: Checkpoint, count: int, stream: int) -> Prompts:
    rng = np.random.default_rng((task.seed, stream))
    return tasks.get(task.task).draw(checkpoint.tokenizer(), count, settings=task, rng=rng)
