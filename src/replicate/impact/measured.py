r"""Section 5: the signal V, its loss Delta, the alignment kappa, the headroom H, and the score of a checkpoint.

At an answer position with state s and label y, two costates are taken on the same prompts, states, samples, rewards:

- the *pathwise* costate lambda_i = dR(a_i)/ds, the reward differentiated through the action;
- the *empirical* costate lambda^_i = A_i dlog pi(a_i | s)/ds, the reward detached (Def. 2 with one answer token).

Two action models:

- ``"categorical"``: a_i ~ pi(. | s), R = 1[a_i = y]. A sampled token has no pathwise derivative; the pathwise
  costate is that of the soft token, d pi_y/ds, which is the value gradient g itself, the same for all i.
- ``"shift"``: a_i = z + sigma xi_i on the logits, R = softmax(a_i)_y, the shift policy of Lemma 1; g = E lambda_i.

Per prompt (26), (24): V = E|lambda|^2, Delta = E|lambda^ - lambda|^2, kappa = E<lambda^, lambda>, over matched
samples; and the same of the conditional means given the prompt (``V_mean`` = |g|^2, ``delta_mean``, ``kappa_mean``),
in closed form for the categorical model and by unbiased pair averages for the shift policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.checks import one_of
from replicate.impact.headrooms import KINDS, PRIMARY_HEADROOM, column_of, headrooms, sample_headrooms
from replicate.models.answer import AnswerPass, answer_pass, pull_back
from replicate.models.hooks import FINAL
from replicate.models.logits import entropy, log_policy
from replicate.rl.grpo import group_advantages
from replicate.rl.prompts import Prompts

PolicyName = Literal["categorical", "shift"]
Advantage = Literal["leave_one_out", "mean", "grpo", "reward"]

_EPS = 1e-4


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
    advantage: str = "leave_one_out",
    batch: int = 64,
) -> Components:
    """Measures V, Delta, kappa, headroom, entropy and reward of ``model`` at ``layer`` on label-copying prompts.

    Layers are numbered as :data:`~replicate.models.hooks.FINAL` says, which is the default.
    ``prompts`` are token ids of one length, ``labels`` the right answers, ``group_size`` the samples per prompt,
    ``vocab`` the number of token ids in use (default: all the model's rows), ``sigma`` the noise of the shift policy
    in logits, ``advantage`` what multiplies the score: the reward minus the mean of the others (unbiased, in the
    reward's units: the default), minus the group's mean, that over the group's std (GRPO), or the bare reward.
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
        sigma=sigma,
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
    sigma: float,
    kinds: Sequence[str] = get_args(Advantage),
    batch: int = 64,
) -> dict[str, Components]:
    """:func:`components` under several advantages from the same passes: A_i scales a score that is pulled back once."""
    one_of("policy", policy, get_args(PolicyName))
    if group_size < 2:
        raise ValueError(f"group_size: expected at least 2 samples a prompt, got {group_size}")
    if prompts.ndim != 2 or labels.shape != prompts.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"prompts, labels: expected [prompts, length] and [prompts], at least one, got {list(prompts.shape)} and "
            f"{list(labels.shape)}"
        )
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    parts: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in kinds}
    for rows, answers in zip(prompts.split(batch), labels.split(batch), strict=True):
        answer = answer_pass(model, rows, layer=layer)
        if policy == "categorical":
            samples = _categorical(answer, answers, vocab, group_size, generator)
        else:
            samples = _shift(answer, answers, vocab, group_size, sigma, generator)
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


@dataclass(frozen=True)
class _Samples:
    """Costates of one batch of prompts: ``pathwise`` and ``scores`` [samples, prompts, state] (one pathwise row if it
    is the same for all samples), ``rewards`` [prompts, samples], ``p`` [prompts] pi(y | q) for the categorical model.
    """

    pathwise: Tensor
    scores: Tensor
    rewards: Tensor
    log_probs: Tensor
    p: Tensor | None


def _categorical(answer, labels, vocab, group, generator) -> _Samples:
    log_probs, head = _head_inputs(answer, vocab)
    probs = log_probs.exp()
    uniforms = torch.rand(
        len(labels), group, generator=generator, device=generator.device, dtype=torch.float64
    )
    cumulated = probs.double().cumsum(-1)
    drawn = torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True).clamp(
        max=probs.shape[-1] - 1
    )
    mean_row = probs @ head
    scores = head[drawn] - mean_row[:, None]  # dlog pi(a)/dh = W_a - sum_b pi_b W_b at the final state
    correct = probs.gather(1, labels[:, None])
    pathwise = correct * (head[labels] - mean_row)  # d pi_y / dh
    costates = pull_back(answer, torch.cat([pathwise[None], scores.transpose(0, 1)]))
    rewards = (drawn == labels[:, None]).to(probs.dtype)
    return _Samples(costates[:1], costates[1:], rewards, log_probs, correct[:, 0])


def _shift(answer, labels, vocab, group, sigma, generator) -> _Samples:
    log_probs, head = _head_inputs(answer, vocab)
    shape = (len(labels), group, log_probs.shape[-1])
    xi = torch.randn(shape, generator=generator, device=generator.device, dtype=log_probs.dtype)
    soft = (log_probs[:, None] + sigma * xi).softmax(-1)  # softmax(a); log pi and z differ by a constant
    rewards = soft.gather(-1, labels[:, None, None].expand(-1, group, 1)).squeeze(-1)
    pathwise = rewards[..., None] * (head[labels][:, None] - soft @ head)  # dR(a)/dh
    scores = xi @ head / sigma  # dlog p(a | z)/dh = W^T xi / sigma
    both = pull_back(answer, torch.cat([pathwise, scores], dim=1).transpose(0, 1))
    return _Samples(both[:group], both[group:], rewards, log_probs, None)


def _summary(samples: _Samples, kind: str) -> dict[str, Tensor]:
    """The columns of :class:`Components` per prompt, under one advantage."""
    pathwise, group = samples.pathwise, samples.rewards.shape[1]
    empirical = advantages(samples.rewards, kind=kind).T[..., None] * samples.scores  # (14), one answer token
    matched = {  # (26) and (24) over matched samples
        "V": pathwise.square().sum(-1).mean(0),
        "delta": (empirical - pathwise).square().sum(-1).mean(0),
        "kappa": (empirical * pathwise).sum(-1).mean(0),
        "empirical": empirical.square().sum(-1).mean(0),
    }
    if samples.p is not None:
        strength, V = expected_gain(samples.p, group, kind=kind), matched["V"]
        means = {"V_mean": V, "delta_mean": (strength - 1).square() * V, "kappa_mean": strength * V}
        spread = {**_columns(headrooms(samples.p)), "reward": samples.p}
    else:
        gap, V = empirical - pathwise, _pairs(pathwise, pathwise)
        # The baseline ties the samples of a group together: E<lambda^_i, lambda^_j> exceeds |g|^2 by this share.
        tie = {"leave_one_out": 1 / (group - 1) ** 2, "mean": 1 / group**2}.get(kind, 0.0)
        means = {
            "V_mean": V,
            "delta_mean": _pairs(gap, gap) - tie * V,
            "kappa_mean": _pairs(empirical, pathwise),
        }
        spread = {**_columns(sample_headrooms(samples.rewards)), "reward": samples.rewards.mean(1)}
    return {**matched, **means, **spread, "entropy": entropy(samples.log_probs)}


def _columns(by_kind: dict[str, Tensor]) -> dict[str, Tensor]:
    return {column_of(kind): x for kind, x in by_kind.items()}


def _head_inputs(answer: AnswerPass, vocab: int | None) -> tuple[Tensor, Tensor]:
    rows = vocab or answer.head.shape[0]
    log_probs = log_policy(answer.logits, vocab=rows)
    return log_probs, answer.head[:rows].to(log_probs.dtype)


def _pairs(one, two) -> Float[Tensor, " prompts"]:
    """Unbiased estimate of <E one, E two> from samples [samples, prompts, state]: the average over pairs i != j."""
    n = len(one)
    return ((one.sum(0) * two.sum(0)).sum(-1) - (one * two).sum((0, -1))) / (n * (n - 1))


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
    if kind in ("reward", "leave_one_out"):
        return torch.ones_like(p)
    if kind == "mean":
        return torch.full_like(p, 1 - 1 / group)
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


def gradient_norm_squared(model: nn.Module, prompts: Prompts, *, batch: int = 64) -> float:
    """|grad_theta J|^2, the squared norm of the objective's gradient in parameter space (a baseline of audit A10)."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for start in range(0, len(prompts), batch):
        part = prompts.select(torch.arange(start, min(start + batch, len(prompts))))
        logits = model(input_ids=part.tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
        log_probs = log_policy(logits, vocab=part.vocab)
        objective = log_probs.gather(1, part.labels[:, None]).exp().sum() / len(prompts)
        torch._foreach_add_(total, torch.autograd.grad(objective, parameters))
    return sum(g.double().square().sum().item() for g in total)
