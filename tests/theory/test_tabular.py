"""The discrete contrast: every expectation is a finite sum, so every statement is exact."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad

from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory import tabular
from replicate.theory.policy_gradients import group_advantages


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(states: int) -> torch.Tensor:
    return torch.softmax(torch.arange(states, dtype=torch.float64), 0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    states=st.integers(1, 4), actions=st.integers(1, 3), horizon=st.integers(1, 4),
    gamma=st.sampled_from([0.0, 0.7, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_policy_gradient_theorem_is_autograd_of_dynamic_programming(
    states, actions, horizon, gamma, seed
):
    task = tabular.random_tabular(states, actions, generator=generator(seed))

    def J(theta: torch.Tensor) -> torch.Tensor:
        return start(states) @ tabular.values(task._replace(theta=theta), horizon=horizon, gamma=gamma)[0]

    exact = tabular.exact_gradient(task, start(states), horizon=horizon, gamma=gamma)
    by_autograd = grad(J)(task.theta)
    # With one action, or no future that differs, the gradient is zero and only round-off is left.
    assert (exact - by_autograd).norm() < 1e-10 * max(by_autograd.norm().item(), 1e-3)


def test_the_value_is_the_sum_over_all_trajectories():
    task = tabular.random_tabular(2, 2, generator=generator())
    V = tabular.values(task, horizon=3, gamma=0.8)[0]
    for s0 in range(2):
        total = 0.0
        for acts in itertools.product(range(2), repeat=3):
            for nexts in itertools.product(range(2), repeat=3):
                p, ret, s = 1.0, 0.0, s0
                for t, (a, x) in enumerate(zip(acts, nexts, strict=True)):
                    p *= (task.pi[s, a] * task.P[s, a, x]).item()
                    ret += 0.8**t * task.r[s, a].item()
                    s = x
                total += p * ret
        assert total == pytest.approx(V[s0].item(), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_costate_of_a_belief_is_the_value_function(steps):
    task = tabular.random_tabular(3, 2, generator=generator())
    lam = grad(lambda b: tabular.belief_return(task, b, steps=steps, gamma=0.9))(start(3))
    assert relative_error(lam, tabular.values(task, horizon=steps, gamma=0.9)[0]) < 1e-12
    assert relative_error(lam, tabular.values(task, horizon=steps + 1, gamma=0.9)[0]) > 1e-3


def test_sampled_score_function_gradients_are_unbiased():
    task = tabular.random_tabular(3, 2, generator=generator())
    n, horizon = 20_000, 4
    u = torch.rand(n, horizon, 2, generator=generator(1), dtype=torch.float64)
    s, a, r = tabular.sample(task, torch.zeros(n, dtype=torch.int64), u)
    truth = tabular.exact_gradient(
        task, torch.eye(3, dtype=torch.float64)[0], horizon=horizon, gamma=0.9
    ).flatten()
    ours = tabular.score_function_gradients(task, s, a, r, gamma=0.9).flatten(1)
    assert z_test(ours, truth).worst < worst_z_bound(6)
    assert z_test(-ours, truth).worst > 15
    assert z_test(tabular.score_function_gradients(task, s, a, r, gamma=1.0).flatten(1), truth).worst > 4


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_the_group_factor_is_the_sum_over_all_groups(baseline, scale):
    """Every group of 3 answers out of 3, enumerated: E[gradient] = factor x grad p, answer 0 being right."""
    theta = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64)
    pi = torch.softmax(theta, 0)
    expected = torch.zeros(3, dtype=torch.float64)
    for group in itertools.product(range(3), repeat=3):
        R = torch.tensor([[float(i == 0) for i in group]], dtype=torch.float64)
        A = group_advantages(R, baseline=baseline, scale=scale)[0]
        scores = torch.eye(3, dtype=torch.float64)[list(group)] - pi
        expected += pi[list(group)].prod() * (A[:, None] * scores).mean(0)
    grad_p = pi[0] * (torch.eye(3, dtype=torch.float64)[0] - pi)
    factor = tabular.expected_group_factor(pi[0].item(), group=3, baseline=baseline, scale=scale)
    assert relative_error(expected, factor * grad_p) < 1e-10


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("group", [2, 4, 8, 16])
def test_the_bias_factor_is_exact_for_binary_rewards(p, group):
    """A2: 1 - 1/G with the group mean, 1 with leave-one-out, for every p."""
    factor = lambda baseline: tabular.expected_group_factor(p, group=group, baseline=baseline, scale="none")  # noqa: E731
    assert factor("mean") == pytest.approx(1 - 1 / group, rel=1e-10)
    assert factor("leave_one_out") == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_the_std_reweights_prompts_by_one_over_their_spread_in_large_groups(p):
    limit = 1 / math.sqrt(p * (1 - p))
    assert tabular.expected_group_factor(p, group=2000) == pytest.approx(limit, rel=2e-2)
    assert tabular.expected_group_factor(p, group=4) < 0.9 * limit


@settings(max_examples=10, deadline=None, derandomize=True)
@given(actions=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_gradient_of_k3_is_that_of_the_reversed_divergence(actions, seed):
    """The loss estimates KL(pi, ref); its gradient at theta_old is that of KL(ref, pi), and no other."""
    logits, ref = torch.randn(2, actions, generator=generator(seed), dtype=torch.float64)
    p, q = torch.softmax(logits, 0), torch.softmax(ref, 0)
    ours = tabular.expected_k3_gradient(logits, ref)
    reversed_kl = grad(lambda z: tabular.kl_divergence(q, torch.softmax(z, 0)))(logits)
    assert relative_error(ours, reversed_kl) < 1e-10
    assert relative_error(ours, p - q) < 1e-10
    forward_kl = grad(lambda z: tabular.kl_divergence(torch.softmax(z, 0), q))(logits)
    assert relative_error(ours, forward_kl) > 1e-3
    # The value of k3, on the other hand, is the forward divergence.
    x = q / p
    assert (p * (x - 1 - x.log())).sum().item() == pytest.approx(
        tabular.kl_divergence(p, q).item(), rel=1e-10
    )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"p: expected a probability strictly between 0 and 1, got 1.0"):
        tabular.expected_group_factor(1.0, group=4)
    with pytest.raises(ValueError, match="group: expected at least 2, got 1"):
        tabular.expected_group_factor(0.5, group=1)
    with pytest.raises(ValueError, match="gamma: expected a discount in"):
        tabular.values(tabular.random_tabular(2, 2, generator=generator()), horizon=2, gamma=2.0)
