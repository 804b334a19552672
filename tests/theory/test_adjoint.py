"""Proposition 1 and equations (5)-(9): all routes to a costate agree pairwise, and errors are seen."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from replicate.statistics.agreement import monte_carlo_slope, relative_error, worst_z_bound, z_test
from replicate.theory import adjoint, differences
from replicate.theory.rollout import (
    DifferentiableMDP,
    double_integrator,
    draw_noise,
    objective_gradient,
    rollout,
)
from replicate.theory.toys import Pendulum, SineMap, TanhNetwork

EXACT, DIFFERENCES = 1e-10, 1e-7
COSTATES = (adjoint.costates, adjoint.costates_by_autograd, differences.costates_by_finite_differences)
GRADIENTS = (
    adjoint.policy_gradient,
    adjoint.policy_gradient_by_sensitivities,
    adjoint.policy_gradient_by_autograd,
    differences.policy_gradient_by_finite_differences,
)


class StateDependentNoise(TanhNetwork):
    """A policy that is no shift policy: the noise is scaled by the state. Proposition 1 does not need Lemma
    1.
    """

    def policy(self, s, xi, theta):
        return self.mean(s, theta) + (1 + s[..., :1] ** 2) * xi * theta[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(mdp: DifferentiableMDP, batch: int, horizon: int, seed: int = 0) -> tuple:
    g = generator(seed)
    s0 = torch.randn(batch, mdp.state_dim, generator=g, dtype=torch.float64)
    return s0, *draw_noise(mdp, batch, horizon, generator=g)


def agree_pairwise(results: list[torch.Tensor], tolerance: float) -> None:
    for (i, x), (j, y) in itertools.combinations(enumerate(results), 2):
        assert relative_error(x, y) < tolerance, (i, j)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([TanhNetwork, StateDependentNoise]),
    state=st.integers(1, 4),
    action=st.integers(1, 3),
    batch=st.integers(1, 3),
    horizon=st.integers(1, 4),
    gamma=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    terminal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_costates_agree_pairwise(kind, state, action, batch, horizon, gamma, terminal, seed):
    mdp = kind(state, action, generator=generator(seed), terminal=terminal)
    s0, xi, zeta = case(mdp, batch, horizon, seed)
    lam = [route(mdp, s0, xi, gamma=gamma, transition_noise=zeta) for route in COSTATES]
    assert lam[0].shape == (batch, horizon + 1, state)
    agree_pairwise(lam[:2], EXACT)
    agree_pairwise(lam, DIFFERENCES)
    assert terminal or lam[0][:, -1].abs().max() == 0


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([TanhNetwork, StateDependentNoise]),
    state=st.integers(1, 3),
    action=st.integers(1, 2),
    batch=st.integers(1, 3),
    horizon=st.integers(1, 4),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_policy_gradients_agree_pairwise(kind, state, action, batch, horizon, gamma, seed):
    """(7) by costates, by forward sensitivities, by backpropagation through time, by finite differences."""
    mdp = kind(state, action, generator=generator(seed))
    s0, xi, zeta = case(mdp, batch, horizon, seed)
    gradients = [route(mdp, s0, xi, gamma=gamma, transition_noise=zeta) for route in GRADIENTS]
    agree_pairwise(gradients[:3], EXACT)
    agree_pairwise(gradients, DIFFERENCES)


@pytest.mark.parametrize(
    "mdp",
    [Pendulum(generator=generator()), SineMap(2.5), double_integrator()],
    ids=lambda mdp: type(mdp).__name__,
)
def test_every_toy_passes_without_transition_noise(mdp):
    s0, xi, _ = case(mdp, 3, 5)
    agree_pairwise([route(mdp, s0, xi, gamma=0.9) for route in COSTATES[:2]], EXACT)
    agree_pairwise([route(mdp, s0, xi, gamma=0.9) for route in COSTATES], DIFFERENCES)
    agree_pairwise([route(mdp, s0, xi, gamma=0.9) for route in GRADIENTS[:3]], EXACT)


def planted_errors(mdp, s0, xi, zeta, gamma) -> dict[str, torch.Tensor]:
    """Wrong recursions that a slip of the pen produces."""
    d = adjoint.partials(mdp, s0, xi, transition_noise=zeta)
    run = adjoint.adjoint_recursion
    right = run(d.Dr, d.Df, d.terminal, gamma=gamma)
    return {
        "transition Jacobian not transposed": run(d.Dr, d.Df.mT, d.terminal, gamma=gamma),
        "policy path left out of the transition": run(d.Dr, d.f_s, d.terminal, gamma=gamma),
        "policy path left out of the reward": run(d.r_s, d.Df, d.terminal, gamma=gamma),
        "discount left out": run(d.Dr, d.Df, d.terminal, gamma=1.0),
        "discount off by one": run(gamma * d.Dr, d.Df, d.terminal, gamma=gamma),
        "terminal reward left out": run(d.Dr, d.Df, torch.zeros_like(d.terminal), gamma=gamma),
        "sign": -right,
        "time off by one": right.roll(1, 1),
    }


@pytest.mark.parametrize("seed", range(3))
def test_planted_errors_in_the_recursion_are_rejected(seed):
    mdp = TanhNetwork(3, 2, generator=generator(seed))
    s0, xi, zeta = case(mdp, 4, 4, seed)
    truth = adjoint.costates_by_autograd(mdp, s0, xi, gamma=0.8, transition_noise=zeta)
    for name, wrong in planted_errors(mdp, s0, xi, zeta, 0.8).items():
        assert relative_error(wrong, truth) > 1e-3, name


def test_planted_errors_in_the_parameter_gradient_are_rejected():
    mdp = TanhNetwork(3, 2, generator=generator())
    s0, xi, zeta = case(mdp, 4, 4)
    truth = adjoint.policy_gradient_by_autograd(mdp, s0, xi, gamma=0.8, transition_noise=zeta)
    d = adjoint.partials(mdp, s0, xi, transition_noise=zeta)
    lam = adjoint.costates(mdp, s0, xi, gamma=0.8, transition_noise=zeta)
    pi_theta = adjoint.policy_jacobians(mdp, rollout(mdp, s0, xi, transition_noise=zeta).states[:, :-1], xi)
    discounts = 0.8 ** torch.arange(4, dtype=torch.float64)
    signal = adjoint.action_signals(d, lam[:, 1:], gamma=0.8)
    same_step = adjoint.action_signals(d, lam[:, :-1], gamma=0.8)
    wrong = {
        "lambda_t for lambda_{t+1}": torch.einsum("t,btap,bta->bp", discounts, pi_theta, same_step),
        "gamma^t left out": torch.einsum("btap,bta->bp", pi_theta, signal),
        "future left out": torch.einsum("t,btap,bta->bp", discounts, pi_theta, d.r_a),
    }
    for name, gradient in wrong.items():
        assert relative_error(gradient, truth) > 1e-2, name


def test_partials_are_those_of_the_linear_quadratic_task():
    mdp = double_integrator()
    s0, xi, _ = case(mdp, 2, 3)
    path, d = rollout(mdp, s0, xi), adjoint.partials(mdp, s0, xi)
    torch.testing.assert_close(d.Df, (mdp.A + mdp.B @ mdp.K).expand(2, 3, 2, 2))
    torch.testing.assert_close(d.r_s, -2 * path.states[:, :-1] @ mdp.Q)
    torch.testing.assert_close(d.r_a, -2 * path.actions @ mdp.R)


def _conditional_costates(n: int, seed: int = 0) -> tuple:
    """Costates at t = 0..T need many rollouts from one state: the task, the state, the noise."""
    mdp = double_integrator(noise_std=0.5, transition_std=0.2)
    s0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    xi, zeta = draw_noise(mdp, n, 6, generator=generator(seed))
    return mdp, s0, xi, zeta


def test_mean_costate_is_the_value_gradient_at_every_step():
    """(9) on LQG against -2 P_t s; a value gradient of the wrong step or sign is far outside."""
    mdp, s0, _, _ = _conditional_costates(1)
    for t in range(6):
        n, horizon = 4000, 6 - t
        xi, zeta = draw_noise(mdp, n, horizon, generator=generator(t))
        lam = adjoint.costates(mdp, s0.expand(n, -1), xi, gamma=0.9, transition_noise=zeta)[:, 0]
        g = mdp.value_gradient(s0[0], t, horizon=6, gamma=0.9)
        assert z_test(lam, g).worst < worst_z_bound(2), t
        assert z_test(lam, -g).worst > 50, t
        assert z_test(lam, mdp.value_gradient(s0[0], t + 1, horizon=6, gamma=0.9)).worst > 20, t
        assert z_test(lam, mdp.value_gradient(s0[0], t, horizon=6, gamma=0.8)).worst > 5 or t > 4, t


def test_value_gradient_obeys_its_own_recursion():
    """(8) on LQG: the bracket is affine in the noise, so its mean is its value at zero noise, exactly."""
    mdp, s0, xi, _ = _conditional_costates(1)
    quiet = torch.zeros_like(xi[:, :1])
    d = adjoint.partials(mdp, s0, quiet)
    s1 = rollout(mdp, s0, quiet).states[:, 1]
    for t in range(6):
        following = mdp.value_gradient(s1, t + 1, horizon=6, gamma=0.9)
        right = adjoint.adjoint_recursion(d.Dr, d.Df, following, gamma=0.9)[:, 0]  # (8)
        assert relative_error(mdp.value_gradient(s0, t, horizon=6, gamma=0.9), right) < EXACT


def test_monte_carlo_error_of_the_mean_costate_falls_like_one_over_root_n():
    sizes, blocks = [4, 16, 64, 256], 150
    mdp, s0, xi, zeta = _conditional_costates(blocks * sum(sizes))
    lam = adjoint.costates(mdp, s0.expand(len(xi), -1), xi, gamma=0.9, transition_noise=zeta)[:, 0]
    g = mdp.value_gradient(s0[0], 0, horizon=6, gamma=0.9)
    slope = monte_carlo_slope(lam, g, sizes, blocks=blocks)[2]
    assert slope.low < -0.5 < slope.high
    assert slope.high - slope.low < 0.1
    biased = monte_carlo_slope(lam, 1.2 * g, sizes, blocks=blocks)[2]
    assert biased.low > -0.5


def test_state_slopes_are_those_of_ordinary_least_squares():
    """Slope and standard error, entry by entry, against statsmodels; rows are costate entries, columns states."""
    states, noise = (torch.randn(40, 3, 2, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    M = torch.randn(3, 2, 2, generator=generator(2), dtype=torch.float64)
    lam = torch.einsum("tij,btj->bti", M, states) + noise * torch.tensor([1.0, 0.1], dtype=torch.float64)
    fit = adjoint.state_slopes(states, lam)
    assert fit.slope.shape == fit.standard_error.shape == (3, 2, 2)
    for t, i in itertools.product(range(3), range(2)):
        ols = OLS(lam[:, t, i].numpy(), states[:, t].numpy()).fit()
        assert fit.slope[t, i].tolist() == pytest.approx(ols.params.tolist(), rel=1e-9)
        assert fit.standard_error[t, i].tolist() == pytest.approx(ols.bse.tolist(), rel=1e-9)


def test_state_slopes_name_bad_arguments():
    states = torch.zeros(4, 3, 2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"costate: expected the shape of states, \[4, 3, 2\], got \[4, 4, 2\]"
    ):
        adjoint.state_slopes(states, torch.zeros(4, 4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="states: expected a batch of more than 2, got 2"):
        adjoint.state_slopes(states[:2], states[:2])


def test_mean_parameter_gradient_is_that_of_the_objective():
    """(7) averaged over the noise against the closed-form gradient of J."""
    mdp, s0, xi, zeta = _conditional_costates(20_000)
    gradient = adjoint.policy_gradient(mdp, s0.expand(len(xi), -1), xi, gamma=0.9, transition_noise=zeta)
    truth = objective_gradient(mdp, s0, horizon=6, gamma=0.9)[0]
    assert z_test(gradient, truth).worst < worst_z_bound(2)
    assert z_test(gradient, objective_gradient(mdp, s0, horizon=6, gamma=0.95)[0]).worst > 10


def test_score_costates_are_unbiased_value_gradients_with_the_reward_path_and_biased_without():
    mdp = double_integrator(noise_std=0.5)
    n, s0 = 40_000, torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    xi, _ = draw_noise(mdp, n, 5, generator=generator(3))
    s0 = s0.expand(n, -1)
    baseline = torch.stack([mdp.value(s, t, horizon=5, gamma=0.9) for t, s in _steps(mdp, s0, xi)], 1)
    g = mdp.value_gradient(s0[0], 0, horizon=5, gamma=0.9)
    for b in (None, baseline):
        lam = adjoint.score_costates(mdp, s0, xi, gamma=0.9, baseline=b)[:, 0]
        assert z_test(lam, g).worst < worst_z_bound(2)
        without = adjoint.score_costates(mdp, s0, xi, gamma=0.9, baseline=b, reward_path=False)[:, 0]
        assert z_test(without, g).worst > 20


def _steps(mdp, s0, xi):
    return enumerate(rollout(mdp, s0, xi).states[:, :-1].unbind(1))


def test_score_costates_omit_exactly_the_reward_path():
    """The difference of the two is the discounted sum of r_s carried back at fixed actions."""
    mdp = TanhNetwork(2, 2, generator=generator(), transition_std=0.0)
    s0, xi, _ = case(mdp, 3, 4)
    d = adjoint.partials(mdp, s0, xi)
    full, own = (adjoint.score_costates(mdp, s0, xi, gamma=0.9, reward_path=p) for p in (True, False))
    path = adjoint.adjoint_recursion(d.r_s, d.f_s, d.terminal, gamma=0.9)
    assert relative_error(full - own, path) < EXACT


def test_bad_arguments_are_named():
    mdp = double_integrator()
    s0, xi, _ = case(mdp, 2, 3)
    for route in (*COSTATES, *GRADIENTS):
        with pytest.raises(ValueError, match=r"s0: expected shape \[batch, 2\], got \[2, 3\]"):
            route(mdp, torch.zeros(2, 3, dtype=torch.float64), xi, gamma=0.9)
    for route in (adjoint.costates, adjoint.policy_gradient):
        with pytest.raises(ValueError, match="gamma: expected a discount in"):
            route(mdp, s0, xi, gamma=1.5)
