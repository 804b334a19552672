r"""Rungs that were intervened on: the same ladder with its temperature, or its weights, changed on purpose.

Along a ladder nearly everything moves together, J_0 first of all, so that a score which orders gains may be J_0 in
disguise. Here J_0 is *held*: every rung's head is multiplied by 1/tau, with tau such that the mean reward on given
prompts is the wanted one. What still differs between two such rungs is not J_0.

- ``"temperature"``: tau alone;
- ``"average"``: first the mean of the weights of a rung and its neighbours, a model that no step of training made.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from replicate.checks import one_of
from replicate.files import sync_folder, write_text
from replicate.ladder.checkpoints import Checkpoint, Ladder, open_folder
from replicate.models.hooks import require_plain_head
from replicate.models.logits import log_policy
from replicate.rl.prompts import Prompts

KINDS = ("temperature", "average")

# Temperatures beyond these leave a policy that is one token, or none.
_RANGE = (1 / 32, 32.0)


def make(
    ladder: Ladder, folder: Path, prompts: Prompts, *, kind: str, reward: float, every: int = 1
) -> Ladder:
    """A ladder of every ``every``-th rung of ``ladder``, intervened on so that J on ``prompts`` is ``reward``.

    Rungs that no temperature brings there are left out: those that put too little mass on the right token even when
    cold, for instance. What is there already is opened. Raises ``ValueError`` for an unknown ``kind``, for a reward
    outside (0, 1), and if no rung can be brought to it.
    """
    one_of("kind", kind, KINDS)
    if not 0 < reward < 1:
        raise ValueError(f"reward: expected a number between 0 and 1, got {reward}")
    done = folder / "LADDER"
    if not done.is_file():
        logging.disable_progress_bar()
        for index in range(0, len(ladder), every):
            _intervened(ladder, index, folder, prompts, kind, reward)
        if not any(folder.glob("stage*")):
            raise ValueError(f"reward: no rung of {ladder.spec} can be brought to {reward} by temperature")
        write_text(done, f"{ladder.kind}, J_0 held at {reward:g} ({kind})\n")
    return open_folder(folder)


def _intervened(ladder: Ladder, index: int, folder: Path, prompts: Prompts, kind: str, reward: float) -> None:
    rung = ladder.checkpoints[index]
    final = folder / rung.name
    if final.exists():
        return
    model = (
        rung.model() if kind == "temperature" else averaged(ladder.checkpoints[max(0, index - 1) : index + 2])
    )
    tau = temperature_for(answer_logits(model, prompts), prompts, reward)
    if tau is None:
        return
    with torch.no_grad():
        model.get_output_embeddings().weight.div_(tau)
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    rung.tokenizer().save_pretrained(part)
    note = {"of": rung.sha, "kind": kind, "temperature": tau, "reward": reward}
    write_text(part / "intervention.json", json.dumps(note, indent=1) + "\n")
    sync_folder(part, contents=True)
    part.rename(final)


def averaged(rungs: Sequence[Checkpoint]) -> PreTrainedModel:
    """The model whose weights are the mean of the rungs'."""
    model, *others = [rung.model() for rung in rungs]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for other in others:
                weight.add_(other.get_parameter(name))
            weight.div_(len(rungs))
    return model


@torch.no_grad()
def answer_logits(model: PreTrainedModel, prompts: Prompts) -> Float[Tensor, "prompts rows"]:
    """The logits at the answer position, in float64."""
    seen = {}
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.update(final=inputs[0][:, -1]))
    try:
        logits = model(input_ids=prompts.tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
    finally:
        hook.remove()
    require_plain_head(head, seen["final"], logits)  # or dividing the head by tau would not divide them
    return logits.double()


def temperature_for(logits: Float[Tensor, "prompts rows"], prompts: Prompts, reward: float) -> float | None:
    """The temperature at which the mean probability of the right tokens is ``reward``; None if none within 1/32 to 32.

    J need not be monotone in tau: where it is reached twice, the temperature nearest to 1 is taken.
    """

    def gap(log_tau: float) -> float:
        log_probs = log_policy(logits / math.exp(log_tau), vocab=prompts.vocab)
        return log_probs.gather(1, prompts.labels[:, None]).exp().mean().item() - reward

    found = list(_crossings(gap, low=math.log(_RANGE[0]), high=math.log(_RANGE[1])))
    return math.exp(min(found, key=abs)) if found else None


def _crossings(gap: Callable[[float], float], *, low: float, high: float, cells: int = 64) -> Iterator[float]:
    from scipy.optimize import brentq

    edges = torch.linspace(low, high, cells + 1, dtype=torch.float64).tolist()
    values = [gap(x) for x in edges]
    for (left, right), (a, b) in zip(itertools.pairwise(edges), itertools.pairwise(values), strict=True):
        if a == 0 or a * b < 0:
            yield brentq(gap, left, right, xtol=1e-10)


def note(rung: Checkpoint) -> Mapping[str, float | str]:
    """What was done to a rung: ``of`` (the digest of the rung it was), ``kind``, ``temperature``, ``reward``."""
    return json.loads((rung.where / "intervention.json").read_text())
