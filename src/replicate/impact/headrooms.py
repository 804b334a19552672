"""Reachable headroom (28): how much reward RL could still add at a checkpoint, in several readings."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from replicate.bisection import bisect
from replicate.checks import one_of

Headroom = Literal["std", "variance", "kl", "best_of_n"]


PRIMARY_HEADROOM: Headroom = "std"


def headroom(
    probs_correct: Float[Tensor, " prompts"], *, kind: str = PRIMARY_HEADROOM, **options: int | float
) -> Float[Tensor, " prompts"]:
    """Reachable headroom (28) per prompt of a 0/1 reward that the policy earns with ``probs_correct``.

    ``"std"`` sqrt(p(1-p)); ``"variance"`` p(1-p); ``"kl"`` the largest gain of a policy within ``delta`` nats
    (default 0.1) of this one; ``"best_of_n"`` the gain 1 - (1-p)^n - p of the best of ``n`` samples (default 8).
    """
    one_of("kind", kind, get_args(Headroom))
    p = probs_correct
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("probs_correct: expected probabilities in [0, 1], got something else (or NaN)")
    known = {"kl": {"delta": 0.1}, "best_of_n": {"n": 8}}.get(kind, {})
    if unknown := set(options) - set(known):
        raise ValueError(f"options: kind={kind!r} takes {sorted(known) or 'none'}, got {sorted(unknown)}")
    chosen = {**known, **options}
    if any(not value > 0 for value in chosen.values()):
        raise ValueError(f"options: expected positive numbers, got {chosen}")
    if kind == "std":
        return (p * (1 - p)).sqrt()
    if kind == "variance":
        return p * (1 - p)
    if kind == "best_of_n":
        return 1 - (1 - p) ** chosen["n"] - p
    return _kl_reachable(p, chosen["delta"])


def _kl_reachable(p: Tensor, delta: float) -> Tensor:
    """max {x : kl(x, p) <= delta} - p of a Bernoulli, by bisection; 1 - p where even x = 1 is within reach."""

    def inside(x: Tensor) -> Tensor:
        return torch.xlogy(x, x / p) + torch.xlogy(1 - x, (1 - x) / (1 - p)) <= delta

    low, _ = bisect(inside, p, torch.ones_like(p), steps=60)
    return torch.where(p == 0, torch.zeros_like(p), torch.where(-p.log() <= delta, 1 - p, low - p))


def headrooms(p: Tensor) -> dict[str, Tensor]:
    names = {
        "headroom": "std",
        "headroom_variance": "variance",
        "headroom_kl": "kl",
        "headroom_best_of_n": "best_of_n",
    }
    return {name: headroom(p, kind=kind) for name, kind in names.items()}


def sample_headrooms(
    rewards: Float[Tensor, "prompts group"], n: int = 8, delta: float = 0.1
) -> dict[str, Tensor]:
    """The same readings from sampled rewards of any scale."""
    return {
        "headroom": rewards.std(1),
        "headroom_variance": rewards.var(1),
        "headroom_kl": tilted_gain(rewards, delta),
        "headroom_best_of_n": expected_best(rewards, min(n, rewards.shape[1])) - rewards.mean(1),
    }


def tilted_gain(rewards: Float[Tensor, "prompts samples"], delta: float) -> Float[Tensor, " prompts"]:
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


def expected_best(rewards: Float[Tensor, "prompts samples"], n: int) -> Float[Tensor, " prompts"]:
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
