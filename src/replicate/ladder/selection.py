"""A few rungs of a ladder, chosen by their reward J_0, so that long studies need not run on all of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from replicate.checks import one_of
from replicate.files import write_text
from replicate.ladder.checkpoints import Ladder, open_folder
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.rollout import log_probs_of

BY = ("ranks", "rewards")


def spread_out(ladder: Ladder, folder: Path, prompts: Prompts, *, count: int, by: str = "ranks") -> Ladder:
    """The ladder of ``count`` rungs of ``ladder``, evenly spaced in the ranks of their J_0 on ``prompts``, that is at
    its quantiles, or in J_0 itself (``by`` "rewards").

    J_0 is the mean probability of a right token, along the right answer where that is longer than one. ``folder`` has
    links to the rungs. What is there already is opened. Raises ``ValueError`` for fewer rungs than ``count``.
    """
    if not (folder / "LADDER").is_file():
        rewards = [_reward(rung.model(), prompts) for rung in ladder]
        some(ladder, folder, spread(rewards, count, by=by), said=f"{count} rungs spread over the {by} of J_0")
    return open_folder(folder)


def some(ladder: Ladder, folder: Path, indices: Sequence[int], *, said: str = "some rungs") -> Ladder:
    """The ladder of the rungs at ``indices``, as a folder of links; ``ValueError`` for one that is not there."""
    if out := [i for i in indices if not 0 <= i < len(ladder)]:
        raise ValueError(f"indices: expected rungs from 0 to {len(ladder) - 1}, got {out[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        link = folder / ladder.checkpoints[index].name
        if not link.exists():
            link.symlink_to(os.path.relpath(ladder.checkpoints[index].where.resolve(), folder.resolve()))
    write_text(folder / "LADDER", f"{ladder.kind}, {said}\n")
    return open_folder(folder)


def spread(rewards: Sequence[float], count: int, *, by: str = "ranks") -> list[int]:
    """The places, in order, of ``count`` rewards, lowest and highest among them: those whose ranks are evenly spaced,
    or those nearest to evenly spaced rewards, each taken once."""
    one_of("by", by, BY)
    if not 2 <= count <= len(rewards):
        raise ValueError(f"count: expected 2 to {len(rewards)} rungs, got {count}")
    if by == "rewards":
        return _nearest(np.asarray(rewards), np.linspace(min(rewards), max(rewards), count))
    order = np.argsort(rewards, kind="stable")
    return sorted(int(i) for i in order[np.linspace(0, len(rewards) - 1, count).round().astype(int)])


def _nearest(rewards: np.ndarray, targets: np.ndarray) -> list[int]:
    left, found = set(range(len(rewards))), []
    for target in targets:
        found.append(min(sorted(left), key=lambda i: abs(rewards[i] - target)))
        left.remove(found[-1])
    return sorted(found)


@torch.no_grad()
def _reward(model, prompts: Prompts) -> float:
    labels = prompts.labels.view(1, len(prompts), 1, -1)
    found = log_probs_of(SinglePolicy(model), prompts.tokens[None], labels, vocab=prompts.vocab)
    return found.exp().mean().item()
