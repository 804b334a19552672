"""A few rungs of a ladder, chosen by their reward J_0, so that long studies need not run on all of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from replicate.files import write_text
from replicate.ladder.checkpoints import Ladder, open_folder
from replicate.rl.prompts import Prompts, evaluate


def at_quantiles(ladder: Ladder, folder: Path, prompts: Prompts, *, count: int) -> Ladder:
    """The ladder of ``count`` rungs of ``ladder`` at evenly spaced quantiles of their J_0 on ``prompts``.

    ``folder`` has links to the rungs. What is there already is opened. Raises ``ValueError`` for fewer rungs than
    ``count``.
    """
    done = folder / "LADDER"
    if not done.is_file():
        rewards = [evaluate(rung.model(), prompts).correct.mean().item() for rung in ladder]
        folder.mkdir(parents=True, exist_ok=True)
        for index in spread(rewards, count):
            link = folder / ladder.checkpoints[index].name
            if not link.exists():
                link.symlink_to(os.path.relpath(ladder.checkpoints[index].where, folder))
        write_text(done, f"{ladder.kind}, {count} rungs at quantiles of J_0\n")
    return open_folder(folder)


def spread(rewards: Sequence[float], count: int) -> list[int]:
    """The places, in order, of the ``count`` rewards whose ranks are evenly spaced, lowest and highest among them."""
    if not 2 <= count <= len(rewards):
        raise ValueError(f"count: expected 2 to {len(rewards)} rungs, got {count}")
    order = np.argsort(rewards, kind="stable")
    return sorted(int(i) for i in order[np.linspace(0, len(rewards) - 1, count).round().astype(int)])
