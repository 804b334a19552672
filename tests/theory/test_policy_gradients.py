"""Equations (1), (11) and audit A2 on the linear-quadratic task, whose gradient has a closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jacrev

from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory import policy_gradients as pg
from replicate.theory.adjoint import policy_gradient
from replicate.theory.rollout import double_integrator, objective_gradient, rollout
from replicate.theory.toys import TanhNetwork

GAMMA, HORIZON = 0.95, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lqg_groups(*, prompts: int = 4000, group: int = 4, seed: int = 0) -> tuple:
    """Groups from one starting state, so that each row is an independent estimate of the same gradient."""
    mdp = double_integrator(noise_std=0.6)
    s0 = torch.tensor([[1.5, -1.0]], dtype=torch.float64)
    groups = pg.sample_groups(
        mdp, s0.expand(prompts, -1), group=group, horizon=HORIZON, gamma=GAMMA, generator=generator(seed)
    )
    return mdp, groups, objective_gradient(mdp, s0, horizon=HORIZON, gamma=GAMMA)[0]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    prompts=st.integers(1, 4),
    group=st.integers(2, 6),
    scale=st.sampled_from(["std", "none"]),
    seed=st.integers(0, 99),
)
def test_group_advantages_are_the_formula(prompts, group, scale, seed):
    R = torch.randn(prompts, group, generator=generator(seed), dtype=torch.float64)
    for baseline in ("mean", "leave_one_out", "none"):
        A = pg.group_advantages(R, baseline=baseline, scale=scale)
        for q in range(prompts):
            for i in range(group):
                others = [R[q, j].item() for j in range(group) if j != i]
                b = {"mean": R[q].mean().item(), "leave_one_out": sum(others) / len(others), "none": 0.0}[
                    baseline
                ]
                spread = R[q].numpy().std(ddof=1) + 1e-4 if scale == "std" else 1.0
                assert A[q, i].item() == pytest.approx((R[q, i].item() - b) / spread, rel=1e-10, abs=1e-12)


def test_leave_one_out_is_the_group_mean_rescaled():
    """R_i - mean of the others = G/(G-1) (R_i - mean of all): RLOO is Dr. GRPO times a constant, sample by
    sample.
    """
    R = torch.randn(3, 5, generator=generator(), dtype=torch.float64)
    mean, loo = (pg.group_advantages(R, baseline=b, scale="none") for b in ("mean", "leave_one_out"))
    assert relative_error(loo, 5 / 4 * mean) < 1e-12


def test_the_slope_of_an_advantage_is_that_of_autograd():
    """dA_i/dR_i with mean and std moving along: the diagonal of the Jacobian, not 1/std, which is another number."""
    R = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    jacobian = jacrev(lambda R: pg.group_advantages(R, eps=1e-2))
    exact = torch.stack([jacobian(row[None])[0, :, 0].diagonal() for row in R])
    assert relative_error(pg.advantage_slopes(R, eps=1e-2), exact) < 1e-12
    assert (
        relative_error(pg.advantage_slopes(R, eps=1e-2), exact * 0 + 1 / (R.std(1, keepdim=True) + 1e-2))
        > 0.1
    )


def test_the_std_of_the_others_leaves_each_member_out():
    R = torch.randn(3, 5, generator=generator(), dtype=torch.float64)
    found = pg.leave_one_out_std(R)
    for i in range(5):
        others = R[:, [j for j in range(5) if j != i]]
        assert relative_error(found[:, i], others.std(1)) < 1e-12
    with pytest.raises(
        ValueError, match="group: expected at least 3 members for the std of the others, got 2"
    ):
        pg.leave_one_out_std(R[:, :2])


def test_a_group_of_equal_returns_has_no_advantage():
    R = torch.full((2, 4), 0.7, dtype=torch.float64)
    for baseline in ("mean", "leave_one_out"):
        for scale in ("std", "none"):
            assert pg.group_advantages(R, baseline=baseline, scale=scale).abs().max() < 1e-10


def test_token_scores_are_autograd_of_log_prob():
    mdp = TanhNetwork(2, 2, generator=generator())
    xi = torch.randn(3, 4, 2, generator=generator(1), dtype=torch.float64)
    path = rollout(mdp, torch.ones(3, 2, dtype=torch.float64), xi)
    scores = pg.token_scores(mdp, path.states[:, :-1], path.actions)
    for i in range(3):
        for t in range(4):
            s, a = path.states[i, t], path.actions[i, t]
            assert (
                relative_error(
                    scores[i, t], grad(lambda theta, s=s, a=a: mdp.log_prob(s, a, theta))(mdp.theta)
                )
                < 1e-12
            )


def test_the_surrogate_gradient_at_theta_old_is_the_weighted_score():
    """(1) by autograd, times T, against sum_t A dlog pi_t; a flipped advantage is rejected."""
    mdp, groups, _ = lqg_groups(prompts=3)
    A = pg.group_advantages(groups.returns)
    states = groups.states[..., :-1, :].flatten(0, 1)
    actions = mdp.mean(states, mdp.theta) + mdp.noise_std * groups.noise.flatten(0, 1)
    by_autograd = pg.surrogate_gradients(mdp, states, actions, A.flatten(), theta=mdp.theta)
    mean = HORIZON * by_autograd.unflatten(0, (3, 4)).mean(1)
    ours = pg.group_gradients(groups, pg.outcome_weights(groups, baseline="mean", scale="std"))
    assert relative_error(mean, ours) < 1e-10
    assert relative_error(-mean, ours) > 1


def unbiased_weights(groups: pg.Groups, critic: torch.Tensor) -> dict[str, torch.Tensor]:
    V = pg.critic_values(critic, groups, degree=1)
    return {
        "REINFORCE": pg.outcome_weights(groups),
        "RLOO": pg.outcome_weights(groups, baseline="leave_one_out"),
        "PPO without critic": pg.reward_to_go_weights(groups, gamma=GAMMA),
        "PPO with a poor critic, lam = 1": pg.critic_weights(groups, V, gamma=GAMMA, lam=1),
    }


def test_unbiased_members_of_the_family_are_unbiased():
    _, groups, truth = lqg_groups(prompts=8000)
    critic = pg.fit_critic(lqg_groups(prompts=200, seed=1)[1], degree=1)
    for name, weights in unbiased_weights(groups, critic).items():
        gradients = pg.group_gradients(groups, weights)
        assert z_test(gradients, truth).worst < worst_z_bound(2), name
        assert z_test(-gradients, truth).worst > 5, name


@pytest.mark.parametrize("group", [2, 4, 8, 16])
def test_the_group_mean_shrinks_the_gradient_by_one_minus_one_over_g(group):
    """A2. The factor is measured to one percent, so that 1 is rejected at every G."""
    _, groups, truth = lqg_groups(prompts=32_000 // group, group=group)
    weights = pg.outcome_weights(groups, baseline="mean")
    factor = pg.group_gradients(groups, weights) @ truth / (truth @ truth)
    theory = torch.tensor([1 - 1 / group], dtype=torch.float64)
    assert z_test(factor[:, None], theory).worst < worst_z_bound(1)
    assert z_test(factor[:, None], torch.ones(1, dtype=torch.float64)).worst > 4


def test_an_advantage_with_itself_as_baseline_has_no_gradient():
    _, groups, truth = lqg_groups(prompts=500)
    itself = pg.outcome_weights(groups) - groups.returns.unsqueeze(-1)
    assert z_test(pg.group_gradients(groups, itself), truth).worst == float("inf")


def test_a_fitted_quadratic_critic_is_the_value_function():
    """V_t of LQG is in its span: R^2 against the closed form, and unbiased also with lam < 1."""
    mdp, groups, truth = lqg_groups()
    critic = pg.fit_critic(groups, degree=2)
    V = pg.critic_values(critic, groups, degree=2)
    for t in range(1, HORIZON):
        exact = mdp.value(groups.states[:, :, t].flatten(0, 1), t, horizon=HORIZON, gamma=GAMMA)
        assert relative_error(V[..., t].flatten(), exact) < 0.02
    gradients = pg.group_gradients(groups, pg.critic_weights(groups, V, gamma=GAMMA, lam=0.5))
    assert z_test(gradients, truth).worst < worst_z_bound(2)


def test_a_useless_critic_biases_only_with_lam_below_one():
    _, groups, truth = lqg_groups(prompts=20_000)
    V = torch.zeros_like(groups.returns_to_go)
    biased, unbiased = (
        pg.group_gradients(groups, pg.critic_weights(groups, V, gamma=GAMMA, lam=lam)) for lam in (0.0, 1.0)
    )
    assert z_test(biased, truth).worst > 5
    assert z_test(unbiased, truth).worst < worst_z_bound(2)


def test_critic_weights_with_lam_one_are_return_minus_value():
    _, groups, _ = lqg_groups(prompts=3)
    V = torch.randn(groups.returns_to_go.shape, generator=generator(), dtype=torch.float64)
    V[..., -1] = 0
    discounts = GAMMA ** torch.arange(HORIZON, dtype=torch.float64)
    direct = discounts * (groups.returns_to_go - V)[..., :-1]
    assert relative_error(pg.critic_weights(groups, V, gamma=GAMMA, lam=1), direct) < 1e-12


@settings(max_examples=8, deadline=None, derandomize=True)
@given(batch=st.integers(1, 4), horizon=st.integers(1, 4), clip=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_the_clip_stops_the_gradient_exactly_where_it_acts(batch, horizon, clip, seed):
    g = generator(seed)
    old, change = 0.5 * torch.randn(2, batch, horizon, generator=g, dtype=torch.float64)
    A = torch.randn(batch, generator=g, dtype=torch.float64)
    logp = old + change
    gradient = grad(lambda x: pg.clipped_surrogate(x, old, A, clip=clip).sum())(logp)
    rho = change.exp()
    free = rho * A[:, None] / horizon
    expected = torch.where(pg.clip_is_active(rho, A, clip=clip), 0.0, free)
    assert relative_error(gradient, expected) < 1e-12


def test_the_clip_leaves_one_side_open():
    """Clipping on both sides whatever the sign of A, a common slip, differs."""
    rho = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    for sign, active in ((1.0, [[False, True]]), (-1.0, [[True, False]])):
        assert pg.clip_is_active(rho, torch.tensor([sign], dtype=torch.float64)).tolist() == active


def test_the_kl_term_is_k3_and_its_gradient_one_minus_the_ratio():
    g = generator()
    logp, ref = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    A = torch.zeros(3, dtype=torch.float64)
    kl = lambda x: -pg.clipped_surrogate(x, logp, A, kl_coef=0.5, logp_ref=ref)  # noqa: E731
    x = (ref - logp).exp()
    torch.testing.assert_close(kl(logp), 0.5 * (x - 1 - x.log()).mean(-1))
    assert relative_error(grad(lambda v: kl(v).sum())(logp), 0.5 * (1 - x) / 2) < 1e-12


@pytest.mark.parametrize(("reading", "multiple"), [("constant", 0), ("stopped", 1), ("live", 2)])
def test_the_readings_of_stop_gradient_give_none_one_and_two_gradients(reading, multiple):
    """A2: a weight constant in a has no gradient at all; one that is not stopped counts it twice."""
    mdp, groups, truth = lqg_groups(prompts=20_000, group=1)
    baseline = mdp.value(groups.s0[0], 0, horizon=HORIZON, gamma=GAMMA).item()
    ours = pg.read_stop_gradient(
        mdp, groups.s0, groups.noise[:, 0], gamma=GAMMA, reading=reading, baseline=baseline
    )
    assert z_test(ours, multiple * truth).worst < worst_z_bound(2)
    if reading != "constant":  # whose scale is arbitrary
        for other in {0, 1, 2} - {multiple}:
            assert z_test(ours, other * truth).worst > 6


def test_the_stopped_reading_is_reinforce_and_the_live_one_adds_bptt():
    mdp, groups, _ = lqg_groups(prompts=5, group=1)

    def read(reading: str) -> torch.Tensor:
        return pg.read_stop_gradient(mdp, groups.s0, groups.noise[:, 0], gamma=GAMMA, reading=reading)

    assert relative_error(read("stopped"), pg.group_gradients(groups, pg.outcome_weights(groups))) < 1e-10
    bptt = policy_gradient(mdp, groups.s0, groups.noise[:, 0], gamma=GAMMA)
    assert relative_error(read("live") - read("stopped"), bptt) < 1e-10


def test_update_statistics_tell_scale_direction_and_noise_apart():
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    scatter = torch.randn(20_000, 2, generator=generator(), dtype=torch.float64)
    fair = pg.update_statistics(truth + 0.5 * scatter, truth)
    assert fair["z"] < worst_z_bound(2)
    assert fair["along"] == pytest.approx(1, abs=5 * fair["along s.e."])
    assert fair["noise"] == pytest.approx(0.5 * 2**0.5 / 5, rel=0.02)
    assert fair["angle"] < 0.2
    scaled = pg.update_statistics(2 * (truth + 0.5 * scatter), truth)
    assert scaled["along"] == pytest.approx(2 * fair["along"])
    assert scaled["noise"] == pytest.approx(fair["noise"])
    assert scaled["z"] > 100
    turned = pg.update_statistics(truth.flip(0) + 0.5 * scatter, truth)
    assert turned["angle"] == pytest.approx(16.26, abs=0.2)  # arccos(24 / 25)
    assert turned["cosine"] == pytest.approx(24 / 25, abs=0.01)


def test_bad_arguments_are_named():
    mdp, groups, _ = lqg_groups(prompts=1, group=2)
    with pytest.raises(ValueError, match="reading: expected constant, stopped or live, got 'dead'"):
        pg.read_stop_gradient(mdp, groups.s0, groups.noise[:, 0], gamma=GAMMA, reading="dead")
    R = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="baseline: expected mean, leave_one_out or none, got 'median'"):
        pg.group_advantages(R, baseline="median")
    with pytest.raises(ValueError, match="scale: expected std or none, got 'mad'"):
        pg.group_advantages(R, scale="mad")
    with pytest.raises(ValueError, match="returns: expected groups of at least 2, got 1"):
        pg.group_advantages(R[:, :1])
    with pytest.raises(ValueError, match="group: expected at least 2 members"):
        pg.leave_one_out(R[:, :1])
    with pytest.raises(ValueError, match="clip: expected a number in"):
        pg.clipped_surrogate(R, R, R[:, 0], clip=0.0)
    with pytest.raises(ValueError, match=r"logp_ref: expected a tensor with kl_coef = 0\.1, got None"):
        pg.clipped_surrogate(R, R, R[:, 0], kl_coef=0.1)
    with pytest.raises(ValueError, match="degree: expected 1 or 2, got 3"):
        pg.critic_features(R, degree=3)
