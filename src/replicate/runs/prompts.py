"""The prompts of the jobs: a function of the settings and the checkpoint's tokenizer alone."""

from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch

from replicate.ladder.checkpoints import Checkpoint
from replicate.rl.prompts import Prompts
from replicate.rl.tasks.label_copying import label_copying

SETTINGS = ("SEED", "LABELS", "FILLER", "EVAL_PROMPTS", "DEVICE")
"""What the held-out prompts depend on; the pool depends on ``POOL_PROMPTS`` as well."""


def draw(settings: SimpleNamespace, checkpoint: Checkpoint, which: Literal["pool", "eval"]) -> Prompts:
    """The prompts that RL draws from (none of them held out), or the held-out ones."""
    held_out = _draw(settings, checkpoint, settings.EVAL_PROMPTS, stream=11)
    if which == "eval":
        return held_out
    pool = _draw(settings, checkpoint, settings.POOL_PROMPTS, stream=12)
    taken = set(held_out.text)
    free = [i for i, text in enumerate(pool.text) if text not in taken]
    if not free:
        raise ValueError(
            f"POOL_PROMPTS, FILLER: all {len(pool)} prompts drawn are held out; take more of the one or of the other"
        )
    return pool.select(torch.tensor(free))


def _draw(settings: SimpleNamespace, checkpoint: Checkpoint, count: int, *, stream: int) -> Prompts:
    rng = np.random.default_rng((settings.SEED, stream))
    words = checkpoint.tokenizer()
    drawn = label_copying(words, count, labels=settings.LABELS, filler=settings.FILLER, rng=rng)
    return drawn.to(settings.DEVICE)
