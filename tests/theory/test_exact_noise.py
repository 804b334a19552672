"""The family's exact moments against Gauss-Hermite sums of its sampled estimators, and against Riccati's gradient."""

import pytest
import torch

from replicate.statistics.agreement import relative_error
from replicate.theory import exact_noise, family
from replicate.theory import policy_gradients as pg
from replicate.theory.gaussian_forms import group_variance, hermite
from replicate.theory.outcome import OutcomeLQG
from replicate.theory.rollout import double_integrator, objective_gradient, returns_to_go, rollout

CART, START = double_integrator(noise_std=0.6), torch.tensor([1.5, -1.0], dtype=torch.float64)
OF = {"horizon": 3, "gamma": 0.9}
TASKS = pytest.mark.parametrize("task", [CART, OutcomeLQG(CART)], ids=["every step", "at the end"])


def nodes_as_groups(task):
    """Every quadrature node as a group of one, so that the estimators of ``family`` give one number a node."""
    nodes, weights = hermite(5, 3)
    noise = nodes.unsqueeze(-1)
    s0 = START.expand(len(nodes), 2)
    path = rollout(task, s0, noise)
    G = returns_to_go(path.rewards, path.terminal, gamma=0.9)
    scores = pg.token_scores(task, path.states[:, :-1], path.actions)
    return weights, pg.Groups(s0, *(x.unsqueeze(1) for x in (noise, path.states, path.rewards, G, scores)))


def moments_by_quadrature(task, estimate):
    weights, groups = nodes_as_groups(task)
    x = estimate(groups)
    mean = weights @ x
    return mean, weights @ (x - mean).square()


@TASKS
def test_reinforce_and_the_critics_by_quadrature(task):
    V = exact_noise.exact_values(task, **OF)
    form = exact_noise.generalised_advantage(task, START, V, gae_lambda=0.7, **OF)

    def by_critic(groups):
        w = pg.critic_weights(groups, V(groups.states), gamma=0.9, lam=0.7)
        if isinstance(task, OutcomeLQG):  # nothing is lost: the last value is the terminal reward
            assert (
                w[:, 0, -1] - 0.9**2 * (0.9 * V(groups.states)[:, 0, 3] - V(groups.states)[:, 0, 2])
            ).abs().max() < 1e-12
        return pg.group_gradients(groups, w)

    for weighted, estimate in (
        (exact_noise.outcome(task, START, **OF), lambda g: pg.group_gradients(g, pg.outcome_weights(g))),
        (form, by_critic),
    ):
        for ours, theirs in zip(weighted.moments(), moments_by_quadrature(task, estimate), strict=True):
            assert relative_error(ours, theirs) < 1e-9


@TASKS
def test_the_mean_of_every_member_is_riccatis_gradient(task):
    V = exact_noise.exact_values(task, **OF)
    found = exact_noise.family_moments(task, START, group=4, critics={"exact": (V, 0.3)}, **OF)
    truth = objective_gradient(task, START[None], **OF)[0]
    assert set(found) == {"REINFORCE", "RLOO", "Dr. GRPO", "reward to go", "exact", "BPTT"}
    for name, moments in found.items():
        factor = 0.75 if name == "Dr. GRPO" else 1
        assert relative_error(moments.mean, factor * truth) < 1e-9, name


@TASKS
def test_sampled_groups_have_the_exact_noise(task):
    V = exact_noise.exact_values(task, **OF)
    critics = {"exact": (V, 0.9)}
    found = exact_noise.family_moments(task, START, group=4, critics=critics, **OF)
    groups = pg.sample_groups(
        task, START.expand(4000, 2), group=4, generator=torch.Generator().manual_seed(0), **OF
    )
    sampled = family.estimates(task, groups, critics=critics, gamma=0.9)
    assert set(sampled) == {*found, "GRPO"}
    for name, moments in found.items():
        distance = (sampled[name] - moments.mean).square().sum(1)
        z = (distance.mean() - moments.variance) / (distance.std() / 4000**0.5)
        assert abs(z) < 4.5, name


def test_squared_noise_counts_rollouts():
    moments = exact_noise.Moments(torch.tensor([3.0, 4.0]), torch.tensor(50.0))
    assert moments.squared_noise(8) == 16


def test_an_update_averages_means_and_quarters_variances():
    one, other = (
        exact_noise.Moments(torch.tensor([m, 0.0]), torch.tensor(v)) for m, v in ((1.0, 4.0), (3.0, 8.0))
    )
    found = exact_noise.update_moments([{"a": one}, {"a": other}])["a"]
    assert found.mean.tolist() == [2, 0]
    assert found.variance.item() == 3


def test_a_start_that_is_drawn_has_the_mean_over_starts():
    """The law of total expectation: nodes over starts, each with its own exact mean."""
    drawn, _ = exact_noise.outcome(CART, None, **OF).moments()
    nodes, weights = hermite(3, 2)
    assert relative_error(drawn, weights @ objective_gradient(CART, nodes, **OF)) < 1e-9


def test_mixing_starts_in_a_group_costs():
    alone = sum(group_variance(*exact_noise.outcome(CART, START, **OF), group=4))
    mixed = sum(group_variance(*exact_noise.outcome(CART, None, **OF), group=4))
    assert mixed > alone
