r"""Objective (1): group advantages and the clipped surrogate, with the conventions of its variants as arguments.

=============  ==========================================================================================
convention     values
=============  ==========================================================================================
``baseline``   ``"mean"``: GRPO, the group's mean, the sample itself included; ``"leave_one_out"``: RLOO, the
               mean of the others
``scale``      ``"std"``: GRPO, divides by the group's sample standard deviation + eps; ``"none"``: Dr. GRPO
``length``     ``"sequence"``: GRPO, mean over a completion's tokens, then over completions; ``"token"``: DAPO,
               mean over all tokens; ``"constant"``: Dr. GRPO, sum over tokens / (completions x max_length)
``clip``       half-width of the ratio's trust interval [1 - clip, 1 + clip]
``kl_coef``    weight of the k3 estimate of KL(pi_theta, pi_ref), per token
=============  ==========================================================================================

The trainer that uses them is :mod:`replicate.rl.trainer`.
"""

from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replicate.checks import one_of
from replicate.settings.conventions import Baseline, Length, Scale
from replicate.settings.grpo import GRPO


def group_advantages(
    rewards: Float[Tensor, "prompts group"],
    *,
    baseline: str = "mean",
    scale: str = "std",
    eps: float = 1e-4,
) -> Float[Tensor, "prompts group"]:
    """A_i = (R_i - baseline) / (std + eps) within each prompt's group, as in (1).

    The standard deviation is the sample one (ddof 1) and ``eps`` is added outside the root. A group of equal rewards
    gives exact zeros. Raises ``ValueError`` for an empty group, rewards that are not finite, an unknown convention,
    or a group of one where the baseline or the scale needs two.
    """
    one_of("baseline", baseline, get_args(Baseline))
    one_of("scale", scale, get_args(Scale))
    if rewards.ndim != 2 or rewards.numel() == 0:
        raise ValueError(
            f"rewards: expected [prompts, group] with both at least 1, got {list(rewards.shape)}"
        )
    group = rewards.shape[1]
    if group == 1 and (baseline == "leave_one_out" or scale == "std"):
        raise ValueError(f"rewards: baseline={baseline!r}, scale={scale!r} need a group of at least 2, got 1")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards: expected finite numbers, got nan or inf")
    # Measured from the group's first reward, equal rewards are zeros before any rounding can happen.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(dim=1, keepdim=True)
    # R_i - mean of the others = (R_i - mean of all) x G / (G - 1).
    advantages = centred * (group / (group - 1)) if baseline == "leave_one_out" else centred
    if scale == "std":
        advantages = advantages / (shifted.std(dim=1, keepdim=True) + eps)
    return advantages


def surrogate_loss(
    logp: Float[Tensor, "completions tokens"],
    logp_old: Float[Tensor, "completions tokens"],
    logp_ref: Float[Tensor, "completions tokens"] | None,
    advantages: Float[Tensor, " completions"] | Float[Tensor, "completions tokens"],
    mask: Bool[Tensor, "completions tokens"] | Float[Tensor, "completions tokens"],
    *,
    clip: float = 0.2,
    kl_coef: float = 0.0,
    length: str = "sequence",
    max_length: int | None = None,
) -> Float[Tensor, ""]:
    """Minus objective (1): a scalar to minimise.

    ``logp`` carries the gradient; ``logp_old`` (sampling policy) and ``logp_ref`` (reference, needed if ``kl_coef``
    is not 0) do not. ``advantages`` are a completion's, or each token's own. ``mask`` is 1 on a completion's tokens;
    what stands elsewhere is ignored, NaN included. A completion without a token contributes 0. ``length="constant"``
    needs ``max_length``, the longest completion allowed, which is not the longest in the batch.
    """
    one_of("length", length, get_args(Length))
    if logp.numel() == 0:
        raise ValueError(f"logp: expected at least one completion and one token, got {list(logp.shape)}")
    if not clip > 0:
        raise ValueError(f"clip: expected a positive number, got {clip}")
    if length == "constant" and (max_length is None or max_length < 1):
        raise ValueError(f"max_length: length='constant' needs a positive number, got {max_length}")
    if kl_coef != 0 and logp_ref is None:
        raise ValueError(f"logp_ref: needed when kl_coef is not 0 (got kl_coef={kl_coef}), got None")
    mask = mask.bool()
    log_ratio = torch.where(mask, logp - logp_old.detach(), 0.0)
    ratio = log_ratio.exp()
    weight = advantages[:, None] if advantages.ndim == 1 else advantages
    objective = torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight)  # (1), first term
    if kl_coef != 0:
        objective = objective - kl_coef * k3(logp, logp_ref, mask)  # (1), second term
    objective = torch.where(mask, objective, 0.0)
    if length == "sequence":
        return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if length == "token":
        return -objective.sum() / mask.sum().clamp(min=1)
    return -objective.sum() / (len(logp) * max_length)


def lane_losses(
    logp: Float[Tensor, "lanes completions tokens"], batch, config: GRPO
) -> Float[Tensor, " lanes"]:
    """:func:`surrogate_loss` of a :class:`~replicate.rl.batch.Batch`, lane by lane, with the conventions of ``config``;
    completions are as long as they may be."""
    mask = torch.ones_like(logp[0], dtype=torch.bool)
    found = [
        surrogate_loss(
            logp[lane],
            batch.old[lane],
            None if batch.ref is None else batch.ref[lane],
            batch.advantages[lane],
            mask,
            clip=config.clip,
            kl_coef=config.kl_coef,
            length=config.length,
            max_length=logp.shape[2],
        )
        for lane in range(len(logp))
    ]
    return torch.stack(found)


def k3(
    logp: Float[Tensor, "completions tokens"],
    logp_ref: Float[Tensor, "completions tokens"],
    mask: Bool[Tensor, "completions tokens"],
) -> Float[Tensor, "completions tokens"]:
    """The k3 estimate of KL(pi_theta, pi_ref) per token, u - log u - 1 with u = pi_ref / pi_theta; never negative."""
    log_u = torch.where(mask, logp_ref.detach() - logp, 0.0)
    return log_u.exp() - log_u - 1
