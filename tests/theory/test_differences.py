"""Routes without derivative code, against derivatives that are known."""

import pytest
import torch

from replicate.statistics.agreement import relative_error
from replicate.theory import adjoint, differences
from replicate.theory.rollout import double_integrator, draw_noise, return_from, returns_to_go, rollout
from replicate.theory.toys import TanhNetwork


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_differences_of_a_known_function():
    """Row by row; exact on cubics, for the extrapolation removes the error of order step^2."""
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    slope = differences.finite_differences(lambda x: (x**3).sum(1) + x[:, 0] * x[:, 1], x, step=0.5)
    cross = torch.stack([x[:, 1], x[:, 0], 0 * x[:, 0]], 1)
    torch.testing.assert_close(slope, 3 * x**2 + cross, rtol=1e-12, atol=1e-12)


def test_the_error_is_of_fourth_order_in_the_step():
    x = torch.tensor([[0.7]], dtype=torch.float64)
    wrong = [
        abs(differences.finite_differences(lambda x: torch.sin(x[:, 0]), x, step=h).item() - x.cos().item())
        for h in (0.4, 0.2)
    ]
    assert 15 < wrong[0] / wrong[1] < 17


def test_states_in_theta_are_the_forward_recursion():
    mdp = TanhNetwork(3, 2, generator=generator())
    s0 = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    xi, zeta = draw_noise(mdp, 2, 3, generator=generator(2))
    d = adjoint.partials(mdp, s0, xi, transition_noise=zeta)
    states = rollout(mdp, s0, xi, transition_noise=zeta).states
    pi_theta = adjoint.policy_jacobians(mdp, states[:, :-1], xi)
    X = [torch.zeros(2, 3, len(mdp.theta), dtype=torch.float64)]
    for t in range(3):
        X.append(d.Df[:, t] @ X[-1] + d.f_a[:, t] @ pi_theta[:, t])
    found = differences.differences_in_theta(lambda path: path.states, mdp, s0, xi, transition_noise=zeta)
    assert found.shape == (2, 4, 3, len(mdp.theta))
    assert relative_error(found, torch.stack(X, 1)) < 1e-8


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_from_a_later_state_are_those_to_go(gamma):
    mdp = TanhNetwork(2, 1, generator=generator())
    s0 = torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    xi, zeta = draw_noise(mdp, 3, 4, generator=generator(2))
    path = rollout(mdp, s0, xi, transition_noise=zeta)
    to_go = returns_to_go(path.rewards, path.terminal, gamma=gamma)
    for t, s in enumerate(path.states.unbind(1)):
        torch.testing.assert_close(return_from(mdp, t, xi, zeta, gamma)(s), to_go[:, t])


def test_costates_of_the_linear_task_by_powers():
    """The closed form along a trajectory, with matrices that are not symmetric, against differences."""
    mdp = double_integrator(noise_std=0.5, transition_std=0.2)
    mdp.Q = mdp.Q + torch.tensor([[0.0, 0.3], [0.0, 0.0]], dtype=torch.float64)
    s0 = torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    xi, zeta = draw_noise(mdp, 3, 5, generator=generator(2))
    found = mdp.costates(rollout(mdp, s0, xi, transition_noise=zeta), gamma=0.9)
    assert found.shape == (3, 6, 2)
    assert found[:, -1].abs().max() == 0
    measured = differences.costates_by_finite_differences(mdp, s0, xi, gamma=0.9, transition_noise=zeta)
    assert relative_error(found, measured) < 1e-8
