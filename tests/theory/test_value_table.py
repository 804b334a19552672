"""The pendulum's tabulated value: against sums over all noise, against samples, and against a finer grid."""

import itertools

import numpy as np
import pytest
import torch

from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory import adjoint
from replicate.theory.rollout import draw_noise, sampled_return
from replicate.theory.toys import Pendulum
from replicate.theory.value_table import ValueTable

STATES = torch.tensor([[0.3, 0.0], [1.0, 0.5], [2.6, -1.5], [-3.1, 3.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def pendulum():
    return Pendulum(generator=torch.Generator().manual_seed(0), noise_std=2.0)


@pytest.fixture(scope="module")
def table(pendulum):
    return ValueTable(pendulum, horizon=8, gamma=0.9)


def test_two_steps_are_a_double_sum(pendulum, table):
    """V_{T-2} by Gauss-Hermite sums over both noises at once: no table, no spline."""
    x, w = np.polynomial.hermite_e.hermegauss(24)
    pairs = torch.tensor(list(itertools.product(x, x)), dtype=torch.float64)[:, :, None]
    weight = torch.from_numpy(np.outer(w, w).ravel() / w.sum() ** 2)
    values = [weight @ sampled_return(pendulum, s.expand(len(pairs), 2), pairs, gamma=0.9) for s in STATES]
    torch.testing.assert_close(table.value(STATES, 6), torch.stack(values), rtol=1e-8, atol=1e-8)


def test_value_and_slope_are_those_of_samples(pendulum, table):
    n, s = 20_000, STATES[1]
    xi, _ = draw_noise(pendulum, n, 8, generator=torch.Generator().manual_seed(1))
    G = sampled_return(pendulum, s.expand(n, 2), xi, gamma=0.9)
    lam = adjoint.costates(pendulum, s.expand(n, 2), xi, gamma=0.9)[:, 0]
    assert z_test(G[:, None], table.value(s[None], 0)).worst < worst_z_bound(1)
    assert z_test(lam, table.gradient(s[None], 0)[0]).worst < worst_z_bound(2)
    assert z_test(lam, table.gradient(s[None], 1)[0]).worst > 20


def test_a_finer_grid_moves_the_slopes_in_the_fifth_decimal(pendulum, table):
    finer = ValueTable(pendulum, horizon=8, gamma=0.9, angles=128, spacing=0.11, nodes=24)
    for t in (0, 4, 7):
        assert (table.gradient(STATES, t) - finer.gradient(STATES, t)).abs().max() < 5e-5
        assert relative_error(table.value(STATES, t), finer.value(STATES, t)) < 1e-6


def test_once_round_is_the_same_place(table):
    round_ = STATES + torch.tensor([2 * torch.pi, 0.0], dtype=torch.float64)
    torch.testing.assert_close(table.value(round_, 0), table.value(STATES, 0))
    left, right = (torch.tensor([[x, 0.4]], dtype=torch.float64) for x in (-torch.pi + 1e-9, torch.pi - 1e-9))
    torch.testing.assert_close(table.gradient(left, 0), table.gradient(right, 0), rtol=1e-4, atol=1e-4)


def test_nothing_is_left_at_the_horizon(table):
    assert table.value(STATES, 8).abs().max() == 0


def test_bad_arguments_are_named(pendulum, table):
    with pytest.raises(ValueError, match=r"t: expected a step in 0\.\.8, got 9"):
        table.value(STATES, 9)
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        ValueTable(pendulum, horizon=0, gamma=0.9)
    with pytest.raises(ValueError, match="gamma: expected a discount in"):
        ValueTable(pendulum, horizon=2, gamma=1.1)
