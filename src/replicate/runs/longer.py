"""The experiment ``longer``: what can be measured at a checkpoint about answers of T tokens, before any RL.

The law's score read at the first token alone, as if it were the answer, and over whole completions under the task's
reward; and the costates at the prompt's embeddings, token by token and position by position, under several credits.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from replicate.impact import by_position, by_prompt
from replicate.ladder.checkpoints import Checkpoint
from replicate.models.answer import answer_pass
from replicate.rl import tasks
from replicate.rl.credit import to_go
from replicate.rl.policies import SinglePolicy
from replicate.rl.prompts import Prompts
from replicate.rl.rollout import log_probs_of, sample
from replicate.runs import prompts
from replicate.settings.machine import Machine
from replicate.settings.measurement import Measurement
from replicate.settings.task import Task
from replicate.streams import generator
from replicate.threads import fixed_threads

GROUPS = 2
"""Independent groups a prompt: what one says of the other's mean is unbiased."""


class Settings(BaseModel, frozen=True):
    """The sections that decide the result; the job is given these and no others."""

    task: Task
    measurement: Measurement
    machine: Machine


def run(settings: Settings, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """By seed: ``reward`` (J of the whole answer where all of it must be right), ``each_right`` along the right answer,
    ``sampled`` reward; ``first`` and ``whole``, the columns of :mod:`replicate.impact.by_prompt` averaged over prompts;
    and ``costates``, rows of signal and noise."""
    with fixed_threads():
        return {seed: _measure(settings, checkpoint, seed) for seed in seeds}


def _measure(settings: Settings, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    machine, task, group = settings.machine, tasks.get(settings.task.task), settings.measurement.group
    how = {"dtype": getattr(torch, machine.dtype), "device": machine.device}
    model = checkpoint.model(**how, attention="eager")
    asked = prompts.measured(settings.task, checkpoint, machine.device)
    horizon, labels = task.horizon(settings.task), asked.labels.view(len(asked), -1)
    draws = generator(seed, checkpoint.sha, "longer", device=machine.device)
    shape = (1, len(asked), GROUPS * group, horizon)
    uniforms = torch.rand(shape, generator=draws, device=machine.device)
    policy = SinglePolicy(model)
    with torch.no_grad():
        tokens = sample(policy, asked.tokens[None], uniforms, vocab=asked.vocab).tokens[0]
        right = log_probs_of(policy, asked.tokens[None], labels[None, :, None], vocab=asked.vocab)[
            0, :, 0
        ].exp()
    rewards = _by_token(task.reward(settings.task)(tokens, asked.labels), horizon)
    answer = answer_pass(model, asked.tokens)
    first = by_prompt.of_answers(answer, labels[:, :1], vocab=asked.vocab, group=group)
    groups = [x.unflatten(1, (GROUPS, group)) for x in (tokens[..., 0], rewards.sum(-1))]
    whole = by_prompt.of_completions(answer, *groups, vocab=asked.vocab)
    return {
        "reward": right.double().prod(1).mean().item(),
        "each_right": right.double().mean().item(),
        "sampled": rewards.sum(-1).double().mean().item(),
        "first": _means(first),
        "whole": _means(whole),
        "costates": list(_costates(model, asked, tokens, rewards, right)),
    }


def _by_token(rewards: Float[Tensor, "prompts group ..."], horizon: int) -> Float[Tensor, "prompts group T"]:
    if rewards.ndim == 3:
        return rewards
    return torch.cat([rewards.new_zeros(*rewards.shape, horizon - 1), rewards[..., None]], -1)


def _means(columns: dict[str, Tensor]) -> dict[str, float]:
    return {name: column.double().mean().item() for name, column in columns.items()}


def _costates(model, asked: Prompts, tokens, rewards, right) -> Iterator[dict[str, Any]]:
    """Rows of signal and noise under each credit, means over the two groups; the labels stand side by side in the
    prompt, from the place where prompts first differ."""
    begins = int((asked.tokens != asked.tokens[:1]).any(0).nonzero()[0])
    places = begins + torch.arange(tokens.shape[2], device=tokens.device)
    for credit, advantages in credits(tokens, rewards, asked.labels.view(len(asked), -1), right).items():
        found = by_position.prompt_costates(model, asked.tokens, tokens, advantages, vocab=asked.vocab)
        halves = [by_position.rows_of(half, places) for half in found.double().chunk(GROUPS, dim=1)]
        for one, two in zip(*halves, strict=True):
            mean = {name: (one[name] + two[name]) / 2 for name in ("signal", "noise")}
            yield {"credit": credit, **one, **mean}


def credits(
    tokens: Int[Tensor, "prompts group T"],
    rewards: Float[Tensor, "prompts group T"],
    labels: Int[Tensor, "prompts T"],
    right: Float[Tensor, "prompts T"],
) -> dict[str, Float[Tensor, "prompts group T"]]:
    """The advantages of every token under each credit, each unbiased and independent within a half of the group.

    "outcome" and "to go" take off the mean of the *other* half. "critic", where only the end pays, has the exact values
    of the policy: V(q, o_<t) is the product of the ``right`` tokens' probabilities from t on while all before are
    right, else 0; a token's advantage is the value behind it less that before it.
    """
    one, two = rewards.chunk(GROUPS, dim=1)
    other = torch.cat([two.mean(1, keepdim=True).expand_as(one), one.mean(1, keepdim=True).expand_as(two)], 1)
    off = rewards - other
    found = {"outcome": off.sum(-1, keepdim=True).expand_as(off).contiguous()}
    if tokens.shape[2] > 1 and bool(rewards[..., :-1].any()):
        found["to go"] = to_go(off)
    elif tokens.shape[2] > 1:
        values = exact_values(tokens, labels, right)
        found["critic"] = (values[..., 1:] - values[..., :-1]).to(rewards.dtype)
    return found


def exact_values(
    tokens: Int[Tensor, "prompts group T"],
    labels: Int[Tensor, "prompts T"],
    right: Float[Tensor, "prompts T"],
) -> Float[Tensor, "prompts group values"]:
    """V(q, o_<t) for t = 1..T and behind the last token, where 1 is paid if all T are right."""
    alive = (tokens == labels[:, None]).to(right.dtype).cumprod(-1)
    alive = torch.cat([torch.ones_like(alive[..., :1]), alive], -1)
    left = right.flip(-1).cumprod(-1).flip(-1)
    return alive * torch.cat([left, torch.ones_like(left[:, :1])], -1)[:, None]
