"""Reachable headroom (28): how much reward RL could still add at a checkpoint, in several readings.

A reading is an entry of :data:`KINDS`: what it is for a 0/1 reward that the policy earns with a known probability, and
what it is estimated by from sampled rewards of any scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.bisection import bisect
from replicate.checks import one_of

Rewards = Float[Tensor, "prompts samples"]
PerPrompt = Float[Tensor, " prompts"]


@dataclass(frozen=True)
class Kind:
    """One reading: ``closed(p, **options)`` and ``sampled(rewards, **options)``, both per prompt; ``options`` are the
    names and defaults of its own."""

    closed: Callable[..., Tensor]
    sampled: Callable[..., Tensor]
    options: Mapping[str, int | float] = field(default_factory=dict)


def headroom(probs_correct: PerPrompt, *, kind: str = "std", **options: int | float) -> PerPrompt:
    """Reachable headroom (28) per prompt of a 0/1 reward that the policy earns with ``probs_correct``.

    ``"std"`` sqrt(p(1-p)); ``"variance"`` p(1-p); ``"kl"`` the largest gain of a policy within ``delta`` nats
    (default 0.1) of this one; ``"best_of_n"`` the gain 1 - (1-p)^n - p of the best of ``n`` samples (default 8).
    Raises ``ValueError`` for what is no probability, and for an unknown kind or option.
    """
    one_of("kind", kind, KINDS)
    p, reading = probs_correct, KINDS[kind]
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("probs_correct: expected probabilities in [0, 1], got something else (or NaN)")
    if unknown := set(options) - set(reading.options):
        raise ValueError(
            f"options: kind={kind!r} takes {sorted(reading.options) or 'none'}, got {sorted(unknown)}"
        )
    chosen = {**reading.options, **options}
    if any(not value > 0 for value in chosen.values()):
        raise ValueError(f"options: expected positive numbers, got {chosen}")
    return reading.closed(p, **chosen)


def headrooms(p: PerPrompt) -> dict[str, Tensor]:
    """Every reading of a 0/1 reward earned with probability ``p``, by kind."""
    return {kind: headroom(p, kind=kind) for kind in KINDS}


def sample_headrooms(rewards: Rewards) -> dict[str, Tensor]:
    """The same readings from sampled rewards of any scale."""
    return {kind: reading.sampled(rewards, **reading.options) for kind, reading in KINDS.items()}


def column_of(kind: str) -> str:
    """What a reading is called in records and tables."""
    return "headroom" if kind == PRIMARY_HEADROOM else f"headroom_{kind}"


def _kl_reachable(p: PerPrompt, delta: float) -> PerPrompt:
    """max {x : kl(x, p) <= delta} - p of a Bernoulli, by bisection; 1 - p where even x = 1 is within reach."""

    def inside(x: Tensor) -> Tensor:
        return torch.xlogy(x, x / p) + torch.xlogy(1 - x, (1 - x) / (1 - p)) <= delta

    low, _ = bisect(inside, p, torch.ones_like(p), steps=60)
    return torch.where(p == 0, torch.zeros_like(p), torch.where(-p.log() <= delta, 1 - p, low - p))


def tilted_gain(rewards: Rewards, delta: float) -> PerPrompt:
    """max over reweightings p of the samples with KL(p, uniform) <= delta of E_p R, minus the mean.

    The best reweighting is exponential, p ~ exp(beta R); beta by bisection on its KL, which grows with beta.
    """
    rewards = rewards.double()
    spread = (rewards.amax(1) - rewards.amin(1)).clamp(min=1e-12)
    scaled = (rewards - rewards.amax(1, keepdim=True)) / spread[:, None]
    uniform = -torch.log(torch.tensor(float(rewards.shape[1]), dtype=torch.float64))

    def inside(beta: Tensor) -> Tensor:
        log_p = (beta[:, None] * scaled).log_softmax(1)
        return (log_p.exp() * (log_p - uniform)).sum(1) <= delta

    beta, _ = bisect(inside, torch.zeros_like(spread), torch.full_like(spread, 1e4), steps=80)
    weights = (beta[:, None] * scaled).softmax(1)
    return (weights * rewards).sum(1) - rewards.mean(1)


def expected_best(rewards: Rewards, n: int) -> PerPrompt:
    """Unbiased estimate of E max of n independent rewards: the average over all n-subsets of the samples."""
    total = rewards.shape[1]
    ranks = torch.arange(1, total + 1, dtype=torch.float64, device=rewards.device)
    log_weight = _log_choose(ranks - 1, n - 1) - _log_choose(torch.full_like(ranks, total), n)
    return (rewards.double().sort(1).values * log_weight.exp()).sum(1)


def _log_choose(n: Tensor, k: int) -> Tensor:
    value = (
        torch.lgamma(n + 1)
        - torch.lgamma(torch.full_like(n, k + 1.0))
        - torch.lgamma((n - k + 1).clamp(min=1))
    )
    return torch.where(n >= k, value, -torch.inf)


def _best_gain(rewards: Rewards, n: int) -> PerPrompt:
    """Of fewer samples than ``n`` it is the best of them all."""
    return expected_best(rewards, min(n, rewards.shape[1])) - rewards.mean(1)


KINDS: dict[str, Kind] = {
    "std": Kind(lambda p: (p * (1 - p)).sqrt(), lambda rewards: rewards.std(1)),
    "variance": Kind(lambda p: p * (1 - p), lambda rewards: rewards.var(1)),
    "kl": Kind(_kl_reachable, tilted_gain, {"delta": 0.1}),
    "best_of_n": Kind(lambda p, n: 1 - (1 - p) ** n - p, _best_gain, {"n": 8}),
}
PRIMARY_HEADROOM = "std"
