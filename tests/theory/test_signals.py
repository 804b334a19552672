"""What the surrogate sends to the states: autograd against the recursion of score costates, under each reading."""

import pytest
import torch
from torch.func import grad, vmap

from replicate.statistics.agreement import relative_error
from replicate.theory.adjoint import costates, score_costates
from replicate.theory.rollout import double_integrator, draw_noise, returns_to_go, rollout
from replicate.theory.signals import surrogate_signals
from replicate.theory.toys import Pendulum, TanhNetwork

GAMMA, T = 0.9, 5


def tasks():
    g = torch.Generator().manual_seed(3)
    return [double_integrator(), Pendulum(generator=g), TanhNetwork(3, 2, generator=g, transition_std=0)]


def setting(mdp, batch=4):
    g = torch.Generator().manual_seed(1)
    s0 = torch.randn(batch, mdp.state_dim, generator=g, dtype=torch.float64)
    noise, _ = draw_noise(mdp, batch, T, generator=g)
    path = rollout(mdp, s0, noise)
    G = returns_to_go(path.rewards, path.terminal, gamma=GAMMA)[:, :-1]
    return s0, noise, path, GAMMA ** torch.arange(T, dtype=torch.float64) * G


@pytest.mark.parametrize("mdp", tasks(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("rewards", [False, True])
def test_autograd_meets_the_recursion(mdp, rewards):
    """With weights gamma^t G_t the signal at s_t is gamma^t times the score costate."""
    s0, noise, _, weights = setting(mdp)
    found = surrogate_signals(mdp, s0, noise, weights, gamma=GAMMA, rewards=rewards)
    recursion = score_costates(mdp, s0, noise, gamma=GAMMA, reward_path=rewards)[:, :-1]
    discounts = GAMMA ** torch.arange(T, dtype=torch.float64)
    assert relative_error(found, discounts[:, None] * recursion) < 1e-10
    other = surrogate_signals(mdp, s0, noise, weights, gamma=GAMMA, rewards=not rewards)
    assert relative_error(found, other) > 1e-3


@pytest.mark.parametrize("mdp", tasks(), ids=lambda m: type(m).__name__)
def test_stored_states_get_their_own_score_and_no_more(mdp):
    s0, noise, path, weights = setting(mdp)
    found = surrogate_signals(mdp, s0, noise, weights, gamma=GAMMA, dynamics=False)
    score = vmap(vmap(grad(mdp.log_prob), (0, 0, None)), (0, 0, None))
    own = weights[..., None] * score(path.states[:, :-1], path.actions, mdp.theta)
    assert relative_error(found, own) < 1e-12


def test_without_weights_and_with_rewards_it_is_the_reward_at_fixed_actions():
    """For a policy that ignores its state that is the costate itself."""
    mdp = double_integrator().with_theta(torch.zeros(2, dtype=torch.float64))
    s0, noise, _, weights = setting(mdp)
    found = surrogate_signals(mdp, s0, noise, 0 * weights, gamma=GAMMA, rewards=True)
    discounts = GAMMA ** torch.arange(T, dtype=torch.float64)
    assert relative_error(found, discounts[:, None] * costates(mdp, s0, noise, gamma=GAMMA)[:, :-1]) < 1e-12


def test_weights_of_another_shape_are_named():
    mdp = double_integrator()
    s0, noise, _, weights = setting(mdp)
    with pytest.raises(ValueError, match=r"weights: expected shape \[4, 5\], got \[4, 4\]"):
        surrogate_signals(mdp, s0, noise, weights[:, :-1])
