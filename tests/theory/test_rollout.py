"""Definition 1, equation (4), and the closed forms of the linear-quadratic task."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory.rollout import (
    LQG,
    check_rollout_arguments,
    double_integrator,
    draw_noise,
    objective_gradient,
    returns_to_go,
    rollout,
    sampled_return,
)
from replicate.theory.toys import Pendulum, SineMap, TanhNetwork

SIZES = {"state": st.integers(1, 4), "action": st.integers(1, 3), "horizon": st.integers(1, 5)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_lqg(
    state: int, action: int, *, seed: int = 0, noise_std: float = 0.4, transition_std: float = 0.2
) -> LQG:
    g = generator(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return LQG(
        0.6 * draw(state, state),
        draw(state, action),
        draw(state, state),
        draw(action, action),
        0.3 * draw(action, state),
        noise_std=noise_std,
        transition_std=transition_std,
    )


def test_rollout_obeys_the_equation_step_by_step():
    mdp = TanhNetwork(3, 2, generator=generator())
    xi, zeta = draw_noise(mdp, 4, 3, generator=generator(1))
    path = rollout(mdp, torch.ones(4, 3, dtype=torch.float64), xi, transition_noise=zeta)
    for t in range(3):
        s, a = path.states[:, t], path.actions[:, t]
        torch.testing.assert_close(a, mdp.mean(s, mdp.theta) + mdp.noise_std * xi[:, t])
        torch.testing.assert_close(path.rewards[:, t], mdp.reward(s, a))
        torch.testing.assert_close(path.states[:, t + 1], mdp.transition(s, a, zeta[:, t]))
    torch.testing.assert_close(path.terminal, mdp.terminal_reward(path.states[:, -1]))


def test_the_rollout_depends_on_nothing_but_its_arguments():
    mdp = Pendulum(generator=generator())
    s0 = torch.zeros(2, 2, dtype=torch.float64)
    xi, _ = draw_noise(mdp, 2, 4, generator=generator(1))
    torch.manual_seed(1)
    first = rollout(mdp, s0, xi)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, rollout(mdp, s0, xi), strict=True))


def test_transition_noise_is_added_by_each_task_that_has_it():
    for mdp in (random_lqg(2, 1), TanhNetwork(2, 1, generator=generator())):
        s, a = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        difference = mdp.transition(s, a, s) - mdp.transition(s, a, 0 * s)
        torch.testing.assert_close(difference, mdp.transition_std * s)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0, 1])
def test_returns_to_go_are_the_discounted_sums(gamma):
    rewards = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    terminal = torch.randn(3, generator=generator(1), dtype=torch.float64)
    every = torch.cat([rewards, terminal[:, None]], 1)
    G = returns_to_go(rewards, terminal, gamma=gamma)
    for t in range(5):
        direct = sum(gamma ** (k - t) * every[:, k] for k in range(t, 5))
        torch.testing.assert_close(G[:, t], direct)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(**SIZES, gamma=st.floats(0, 1), seed=st.integers(0, 99))
def test_lqg_value_gradient_is_autograd_of_the_value(state, action, horizon, gamma, seed):
    """Also for Q and R that are not symmetric, at any t."""
    mdp = random_lqg(state, action, seed=seed)
    s = torch.randn(3, state, generator=generator(seed), dtype=torch.float64)
    for t in range(horizon + 1):
        g = mdp.value_gradient(s, t, horizon=horizon, gamma=gamma)
        by_autograd = torch.func.grad(lambda s, t=t: mdp.value(s, t, horizon=horizon, gamma=gamma).sum())(s)
        assert relative_error(g, by_autograd) < 1e-12
        P = sum(
            gamma**k
            * (M_k := torch.linalg.matrix_power(mdp.A + mdp.B @ mdp.K, k)).T
            @ (mdp.Q + mdp.K.T @ mdp.R @ mdp.K)
            @ M_k
            for k in range(horizon - t)
        )  # the sum instead of the recursion
        direct = -s @ (P + P.T) if horizon > t else 0 * s
        assert relative_error(g, direct) < 1e-10


def test_lqg_value_is_the_mean_return():
    mdp = random_lqg(2, 2, seed=3)
    n, s0 = 40_000, torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    xi, zeta = draw_noise(mdp, n, 4, generator=generator())
    G = sampled_return(mdp, s0.expand(n, -1), xi, gamma=0.9, transition_noise=zeta)[:, None]
    assert z_test(G, mdp.value(s0, 0, horizon=4, gamma=0.9)).worst < worst_z_bound(1)
    # A value that forgets the noise, or discounts by one step too few, is far outside.
    quiet = random_lqg(2, 2, seed=3, noise_std=0.0, transition_std=0.0)
    assert z_test(G, quiet.value(s0, 0, horizon=4, gamma=0.9)).worst > 20
    assert z_test(G, mdp.value(s0, 0, horizon=4, gamma=0.9) / 0.9).worst > 20


def test_lqg_value_gradient_vanishes_at_the_end_and_checks_its_step():
    mdp = random_lqg(2, 1)
    s = torch.ones(2, dtype=torch.float64)
    assert mdp.value_gradient(s, 3, horizon=3, gamma=0.9).abs().max() == 0
    for t in (-1, 4):
        with pytest.raises(ValueError, match=rf"t: expected a step in 0..3, got {t}"):
            mdp.value_gradient(s, t, horizon=3, gamma=0.9)


def test_objective_gradient_is_the_finite_difference_of_the_closed_form():
    mdp = random_lqg(2, 1, seed=5)
    s0 = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    exact = objective_gradient(mdp, s0, horizon=3, gamma=0.8)
    for i, e in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
        up, down = (mdp.value(s0, 0, horizon=3, gamma=0.8, theta=mdp.theta + x) for x in (e, -e))
        assert relative_error(exact[:, i], (up - down) / 2e-5) < 1e-8


def test_bad_arguments_are_named():
    mdp = double_integrator()
    s0, xi = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"s0: expected shape \[batch, 2\], got \[2, 3\]"):
        rollout(mdp, torch.zeros(2, 3, dtype=torch.float64), xi)
    with pytest.raises(ValueError, match=r"noise: expected shape \[2, horizon, 1\], got \[2, 3, 2\]"):
        rollout(mdp, s0, torch.zeros(2, 3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="noise: expected a horizon of at least 1, got 0"):
        rollout(mdp, s0, xi[:, :0])
    with pytest.raises(ValueError, match=r"transition_noise: expected shape \[2, 3, 2\], got \[2, 3, 1\]"):
        check_rollout_arguments(mdp, s0, xi, xi)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match="gamma: expected a discount in"):
            sampled_return(mdp, s0, xi, gamma=gamma)
    with pytest.raises(ValueError, match="noise_std: expected a number >= 0, got -1"):
        double_integrator(noise_std=-1)
    with pytest.raises(ValueError, match="noise_std: expected a positive number for a density"):
        double_integrator(noise_std=0).log_prob(s0, xi[:, 0], mdp.theta)
    with pytest.raises(ValueError, match="state_dim: expected at least 1, got 0"):
        TanhNetwork(0, 1, generator=generator())


def test_another_theta_changes_the_policy_and_leaves_the_original_alone():
    mdp = double_integrator()
    other = mdp.with_theta(2 * mdp.theta)
    s = torch.ones(1, 2, dtype=torch.float64)
    torch.testing.assert_close(other.K, 2 * mdp.K)
    torch.testing.assert_close(other.mean(s, other.theta), 2 * mdp.mean(s, mdp.theta))
    assert not torch.equal(
        other.value_gradient(s, 0, horizon=3, gamma=1), mdp.value_gradient(s, 0, horizon=3, gamma=1)
    )


def test_log_prob_is_the_density_of_the_policy():
    """Its integral over actions is 1 and its mean is mu: by a fine grid."""
    mdp = Pendulum(generator=generator(), noise_std=0.5)
    s = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    a = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    p = mdp.log_prob(s.expand(4001, -1), a, mdp.theta).exp()
    weight = 16 / 4000
    assert p.sum().item() * weight == pytest.approx(1, rel=1e-10)
    assert (p * a[:, 0]).sum().item() * weight == pytest.approx(mdp.mean(s, mdp.theta).item(), rel=1e-10)


def test_sine_map_sensitivities_grow_at_the_stated_rate():
    mdp = SineMap(3.0)
    s = torch.linspace(-torch.pi, torch.pi, 1001, dtype=torch.float64)[:-1]
    mean_square = (mdp.gain * torch.cos(s)).square().mean().item()
    assert torch.tensor(mean_square).log().item() == pytest.approx(mdp.growth_rate, rel=1e-6)
