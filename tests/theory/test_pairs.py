"""Quadrature over two actions: against closed forms and against samples, also where the integrand jumps or spikes."""

import math

import pytest
import torch
from torch.func import grad

from replicate.theory import pairs

MU, SIGMA = 0.6, 0.7


def bent(a):
    return torch.sin(2 * a) + a / 2


def expectation(f, signal):
    return pairs.pair_expectation(f, signal, mu=MU, sigma=SIGMA)


@pytest.mark.parametrize("signal", [bent, lambda a: a, lambda a: a**2], ids=["bent", "linear", "square"])
def test_moments_of_two_independent_actions(signal):
    exact = {
        "1": (lambda a, b: 1 + 0 * a, 1.0),
        "a": (lambda a, b: a, MU),
        "a b^2": (lambda a, b: a * b**2, MU * (MU**2 + SIGMA**2)),
        "slope": (lambda a, b: pairs.slope(bent)(a), 2 * math.cos(2 * MU) * math.exp(-2 * SIGMA**2) + 0.5),
    }
    for name, (f, value) in exact.items():
        assert expectation(f, signal) == pytest.approx(value, abs=1e-7), name


def test_a_jump_where_the_signals_meet():
    """E[sign(a - b) score(a)] = 1/(sigma sqrt(pi)) for a linear signal; for a bent one samples agree."""
    score = lambda a: (a - MU) / SIGMA**2  # noqa: E731
    linear = expectation(lambda a, b: (a - b).sign() * score(a), lambda a: a)
    assert linear == pytest.approx(1 / (SIGMA * math.sqrt(math.pi)), abs=1e-6)
    a, b = MU + SIGMA * torch.randn(
        2, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sampled = (bent(a) - bent(b)).sign() * score(a)
    exact = expectation(lambda a, b: (bent(a) - bent(b)).sign() * score(a), bent)
    assert abs(sampled.mean().item() - exact) < 4 * sampled.std().item() / 400_000**0.5
    assert abs(exact - linear) > 0.1


def test_a_spike_of_known_area():
    """E[width / (|d| + width)^2] tends to twice the density of d at 0, 1/(sigma sqrt(pi)) for a linear signal."""
    found = expectation(lambda a, b: 1e-4 / ((a - b).abs() + 1e-4) ** 2, lambda a: a)
    assert found == pytest.approx(1 / (SIGMA * math.sqrt(math.pi)), rel=1e-3)


def test_turning_points_are_where_the_slope_changes_sign():
    turns = pairs.turning_points(bent, -3.0, 3.0)
    assert len(turns) == 4
    assert max(abs(grad(bent)(x)).item() for x in turns) < 1e-12
    assert len(pairs.turning_points(torch.tanh, -3.0, 3.0)) == 0


def test_a_noise_scale_of_zero_is_named():
    with pytest.raises(ValueError, match="sigma: expected a positive number, got 0"):
        pairs.pair_expectation(lambda a, b: a, bent, mu=0.0, sigma=0)
