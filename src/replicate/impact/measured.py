r"""Section 5: the signal V, its loss Delta, the alignment kappa, the headroom H, and the score of a checkpoint.

At an answer position with state s and label y, two costates are taken on the same prompts, states, samples, rewards:

- the *pathwise* costate lambda_i = dR(a_i)/ds, the reward differentiated through the action;
- the *empirical* costate lambda^_i = A_i dlog pi(a_i | s)/ds, the reward detached (Def. 2 with one answer token).

What an action a_i is, and how it is differentiated, :mod:`replicate.impact.samples` says. Per prompt (26), (24):
V = E|lambda|^2, Delta = E|lambda^ - lambda|^2, kappa = E<lambda^, lambda>, over matched samples; and the same of the
conditional means given the prompt (``V_mean``, ``delta_mean``, ``kappa_mean``): in closed form where there is one
(Lemma 1 and A4 give E lambda^ = c g with a known c), otherwise without bias from pairs of independent samples, or from
the two groups where the samples of a group are tied together by their advantages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.checks import one_of
from replicate.impact.headrooms import KINDS, PRIMARY_HEADROOM, column_of, headrooms, sample_headrooms
from replicate.impact.samples import GROUPS, Noise, Samples, draw
from replicate.models.answer import answer_pass
from replicate.models.hooks import FINAL
from replicate.models.logits import entropy
from replicate.rl.grpo import group_advantages

Advantage = Literal["leave_one_out", "mean", "grpo", "reward"]

_EPS = 1e-4

# c with E lambda^ = c g where it depends on nothing but the size of the group.
_CONSTANT = {
    "reward": lambda group: 1.0,
    "leave_one_out": lambda group: 1.0,
    "mean": lambda group: 1 - 1 / group,
}


@dataclass(frozen=True)
class Components:
    """What (24)-(28) measure at one checkpoint, averaged over prompts; ``per_prompt`` holds the same per prompt.

    ``V, delta, kappa`` over matched samples, ``empirical`` = E|lambda^|^2 (not in the paper);
    ``V_mean, delta_mean, kappa_mean`` of the conditional means;
    ``headrooms`` by kind, ``headroom`` in the primary one (std); ``entropy`` in nats; ``reward`` the expected reward.
    """

    V: float
    delta: float
    kappa: float
    empirical: float
    V_mean: float
    delta_mean: float
    kappa_mean: float
    headrooms: Mapping[str, float]
    entropy: float
    reward: float
    per_prompt: Mapping[str, Float[Tensor, " prompts"]]

    @property
    def headroom(self) -> float:
        """The primary reading of the headroom."""
        return self.headrooms[PRIMARY_HEADROOM]

    def row(self) -> dict[str, float]:
        """The averages as one row of a table."""
        means = {name: x for name, x in vars(self).items() if name not in ("headrooms", "per_prompt")}
        return means | {column_of(kind): x for kind, x in self.headrooms.items()}


def components(
    model: nn.Module,
    prompts: Int[Tensor, "prompts length"],
    labels: Int[Tensor, " prompts"],
    *,
    layer: int = FINAL,
    group_size: int = 16,
    policy: str = "categorical",
    generator: torch.Generator,
    vocab: int | None = None,
    sigma: float = 1.0,
    temperature: float = 1.0,
    advantage: str = "leave_one_out",
    batch: int = 64,
) -> Components:
    """Measures V, Delta, kappa, headroom, entropy and reward of ``model`` at ``layer`` on label-copying prompts.

    Layers are numbered as :data:`~replicate.models.hooks.FINAL` says, which is the default.
    ``prompts`` are token ids of one length, ``labels`` the right answers, ``group_size`` the samples of each of the two
    groups of a prompt, ``vocab`` the number of token ids in use (default: all the model's rows), ``sigma`` the noise of
    the shift policy in logits, ``temperature`` that of the Gumbel relaxation, ``advantage`` what multiplies the score:
    the reward minus the mean of the others (unbiased, in the reward's units: the default), minus the group's mean, that
    over the group's std (GRPO), or the bare reward.
    One forward pass and, below the final state, one batched backward pass through activations.
    """
    one_of("advantage", advantage, get_args(Advantage))
    return components_by_advantage(
        model,
        prompts,
        labels,
        layer=layer,
        group_size=group_size,
        policy=policy,
        generator=generator,
        vocab=vocab,
        noise=Noise(sigma, temperature),
        kinds=(advantage,),
        batch=batch,
    )[advantage]


def components_by_advantage(
    model: nn.Module,
    prompts: Int[Tensor, "prompts length"],
    labels: Int[Tensor, " prompts"],
    *,
    layer: int,
    group_size: int,
    policy: str,
    generator: torch.Generator,
    vocab: int | None,
    noise: Noise,
    kinds: Sequence[str] = get_args(Advantage),
    batch: int = 64,
) -> dict[str, Components]:
    """:func:`components` under several advantages from the same passes: A_i scales a score that is pulled back once."""
    if group_size < 2:
        raise ValueError(f"group_size: expected at least 2 samples a prompt, got {group_size}")
    if prompts.ndim != 2 or labels.shape != prompts.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"prompts, labels: expected [prompts, length] and [prompts], at least one, got {list(prompts.shape)} and "
            f"{list(labels.shape)}"
        )
    parts: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in kinds}
    for rows, answers in zip(prompts.split(batch), labels.split(batch), strict=True):
        answer = answer_pass(model, rows, layer=layer)
        samples = draw(
            answer,
            answers,
            policy=policy,
            vocab=vocab,
            group=group_size,
            noise=noise,
            generator=generator,
        )
        for kind in kinds:
            parts[kind].append(_summary(samples, kind))
    return {kind: _collect(found, layer) for kind, found in parts.items()}


def _collect(parts: list[dict[str, Tensor]], layer: int) -> Components:
    table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    means = {name: column.double().mean().item() for name, column in table.items()}
    if nans := [name for name, value in means.items() if value != value]:
        raise ValueError(f"model: measurement at layer {layer} gives NaN in {nans}")
    found = {kind: means.pop(column_of(kind)) for kind in KINDS}
    return Components(**means, headrooms=found, per_prompt=table)


def _summary(samples: Samples, kind: str) -> dict[str, Tensor]:
    """The columns of :class:`Components` per prompt, under one advantage."""
    pathwise, rewards = samples.pathwise, samples.rewards
    weights = advantages(rewards.flatten(0, 1), kind=kind).view_as(rewards)
    empirical = weights.flatten(1).T[..., None] * samples.scores  # (14), one answer token
    matched = {  # (26) and (24) over matched samples
        "V": pathwise.square().sum(-1).mean(0),
        "delta": (empirical - pathwise).square().sum(-1).mean(0),
        "kappa": (empirical * pathwise).sum(-1).mean(0),
        "empirical": empirical.square().sum(-1).mean(0),
    }
    if samples.p is not None:
        spread = {**_columns(headrooms(samples.p)), "reward": samples.p}
    else:
        found = rewards.flatten(1)
        spread = {**_columns(sample_headrooms(found)), "reward": found.mean(1)}
    return {**matched, **_means(samples, empirical, kind), **spread, "entropy": entropy(samples.log_probs)}


def _means(samples: Samples, empirical: Tensor, kind: str) -> dict[str, Tensor]:
    """V, Delta and kappa of the conditional means: |E lambda|^2, |E lambda^ - E lambda|^2, <E lambda^, E lambda>."""
    pathwise, group = samples.pathwise, samples.rewards.shape[2]
    V = pathwise[0].square().sum(-1) if len(pathwise) == 1 else _pairs(pathwise)
    if samples.p is not None:  # E lambda^ = c g by A4, and g is known
        c, g = expected_gain(samples.p, group, kind=kind), samples.gradient
        kappa = c * (g * pathwise.mean(0)).sum(-1)
        square = c.square() * g.square().sum(-1)
    elif (c := _CONSTANT.get(kind)) is not None:  # E lambda^ = c g by Lemma 1, and g = E lambda
        kappa, square = c(group) * V, c(group) ** 2 * V
    else:
        ours, theirs = (x.unflatten(0, (GROUPS, group)).mean(1) for x in (empirical, pathwise))
        kappa = ((ours[0] * theirs[1]).sum(-1) + (ours[1] * theirs[0]).sum(-1)) / 2
        square = (ours[0] * ours[1]).sum(-1)
    delta = square - 2 * kappa + V
    # Where lambda^ is unbiased the difference of equals is round-off; its own closed form is exact.
    if samples.p is None and kind in _CONSTANT:
        delta = (_CONSTANT[kind](group) - 1) ** 2 * V
    elif samples.p is not None and len(pathwise) == 1:
        delta = (c - 1).square() * V
    return {"V_mean": V, "delta_mean": delta, "kappa_mean": kappa}


def _columns(by_kind: dict[str, Tensor]) -> dict[str, Tensor]:
    return {column_of(kind): x for kind, x in by_kind.items()}


def _pairs(samples: Float[Tensor, "samples prompts state"]) -> Float[Tensor, " prompts"]:
    """Unbiased estimate of |E x|^2 from independent samples: the average over pairs i != j."""
    n = len(samples)
    return (samples.sum(0).square().sum(-1) - samples.square().sum((0, -1))) / (n * (n - 1))


def advantages(rewards: Float[Tensor, "prompts group"], *, kind: str) -> Float[Tensor, "prompts group"]:
    """The weight of the score in lambda^ under each convention."""
    if kind == "reward":
        return rewards
    if kind == "grpo":
        return group_advantages(rewards, baseline="mean", scale="std", eps=_EPS)
    return group_advantages(rewards, baseline=kind, scale="none")


def expected_gain(p: Float[Tensor, " prompts"], group: int, *, kind: str) -> Float[Tensor, " prompts"]:
    """c with E[lambda^ | q] = c g for a 0/1 reward of probability ``p``: c = E[A | R = 1] - E[A | R = 0].

    1 without a baseline and with leave-one-out, 1 - 1/group with the group's own mean; with the std it depends on p,
    through a sum over the successes K ~ Binomial(group - 1, p) of the others.
    """
    if kind in _CONSTANT:
        return torch.full_like(p, _CONSTANT[kind](group))
    others = torch.arange(group, device=p.device, dtype=p.dtype)
    log_choose = (
        torch.lgamma(others.new_tensor(group)) - torch.lgamma(others + 1) - torch.lgamma(group - others)
    )
    chance = (
        log_choose + torch.xlogy(others, p[:, None]) + torch.xlogy(group - 1 - others, 1 - p[:, None])
    ).exp()
    won, lost = _normalised(others + 1, group)[0], _normalised(others, group)[1]
    return (chance * (won - lost)).sum(-1)


def _normalised(successes: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """GRPO's advantage of a success and of a failure in a group with that many successes."""
    mean = successes / group
    std = (mean * (1 - mean) * group / (group - 1)).sqrt()
    return (1 - mean) / (std + _EPS), -mean / (std + _EPS)
