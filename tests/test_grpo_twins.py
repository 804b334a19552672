"""Objective (1) is written twice, for toy tasks (theory) and for language models (rl): the two agree in float64."""

import itertools

import pytest
import torch

from replicate.rl import grpo
from replicate.theory import policy_gradients

EXACT = 1e-12
CONVENTIONS = list(itertools.product(("mean", "leave_one_out"), ("std", "none")))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rewards() -> torch.Tensor:
    """Groups of graded rewards, of zeros and ones, and of equal ones."""
    graded = torch.randn(3, 5, generator=seeded(), dtype=torch.float64)
    right = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.cat([graded, right, torch.full((1, 5), 0.3, dtype=torch.float64)])


def advantages_apart(eps: float = 1e-4, eps_of_rl: float = 1e-4, **convention) -> float:
    toy = policy_gradients.group_advantages(rewards(), eps=eps, **convention)
    return float((toy - grpo.group_advantages(rewards(), eps=eps_of_rl, **convention)).abs().max())


@pytest.mark.parametrize(("baseline", "scale"), CONVENTIONS)
def test_advantages_agree_under_every_convention_that_both_have(baseline, scale):
    for eps in (1e-4, 0.3):
        assert advantages_apart(baseline=baseline, scale=scale, eps=eps, eps_of_rl=eps) < EXACT


def test_advantages_apart_sees_another_convention_and_another_eps():
    found = [grpo.group_advantages(rewards(), baseline=b, scale=s) for b, s in CONVENTIONS]
    for one, other in itertools.combinations(found, 2):
        assert (one - other).abs().max() > 1e-2
    assert advantages_apart(baseline="mean", scale="std", eps_of_rl=1e-2) > 1e-3


def completions(spread: float):
    """Log-probabilities of 12 completions of 7 tokens now, at sampling, and under the reference; advantages."""
    g = seeded(1)
    old = -torch.rand(12, 7, generator=g, dtype=torch.float64) - 0.5
    now, reference = (old + spread * torch.randn(12, 7, generator=g, dtype=torch.float64) for _ in range(2))
    return now, old, reference, torch.randn(12, generator=g, dtype=torch.float64)


def both_losses(spread: float, *, kl_coef: float, of_rl: dict | None = None):
    """(loss, its gradient in the log-probabilities) by theory's objective and by rl's; ``of_rl`` changes the latter."""
    now, old, reference, A = completions(spread)
    mask = torch.ones(now.shape, dtype=torch.bool)
    how = {"clip": 0.2, "kl_coef": kl_coef}

    def toy(logp):
        return -policy_gradients.clipped_surrogate(logp, old, A, logp_ref=reference, **how).mean()

    def language(logp):
        return grpo.surrogate_loss(logp, old, reference, A, mask, **how | (of_rl or {}))

    found = []
    for loss in (toy, language):
        leaf = now.clone().requires_grad_()
        value = loss(leaf)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    return found


def losses_apart(spread: float, **options) -> tuple[float, float]:
    (value, slope), (other_value, other_slope) = both_losses(spread, **options)
    return float((value - other_value).abs()), float((slope - other_slope).abs().max())


@pytest.mark.parametrize(("spread", "acts"), [(0.02, False), (0.6, True)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize(
    "length", [{"length": "sequence"}, {"length": "token"}, {"length": "constant", "max_length": 7}]
)
def test_losses_and_gradients_agree_whether_or_not_the_clip_acts(spread, acts, kl_coef, length):
    """Without padding the three length conventions are one, the mean over tokens."""
    now, old, _, A = completions(spread)
    clipped = policy_gradients.clip_is_active((now - old).exp(), A, clip=0.2)
    assert 0.2 < clipped.double().mean() < 0.8 if acts else not clipped.any()
    assert max(losses_apart(spread, kl_coef=kl_coef, of_rl=length)) < EXACT
    (_, slope), (_, other) = both_losses(spread, kl_coef=0.0)
    assert torch.equal(slope == 0, clipped)
    assert torch.equal(other == 0, clipped)


@pytest.mark.parametrize(
    "of_rl", [{"clip": 0.25}, {"kl_coef": 0.31}, {"length": "constant", "max_length": 8}], ids=str
)
def test_a_planted_difference_shows_in_value_and_gradient(of_rl):
    assert min(losses_apart(0.6, kl_coef=0.3, of_rl=of_rl)) > 1e-5


def test_a_clip_that_acts_on_both_sides_shows(monkeypatch):
    """rl's twin without the smaller of the two products: a ratio that moved against its advantage stops as well."""
    monkeypatch.setattr(grpo.torch, "minimum", lambda _, clipped: clipped)
    now, old, reference, A = completions(0.6)
    mask = torch.ones(now.shape, dtype=torch.bool)
    wrong = grpo.surrogate_loss(now, old, reference, A, mask)
    monkeypatch.undo()
    right = -policy_gradients.clipped_surrogate(now, old, A).mean()
    assert abs(wrong - right) > 1e-3
