"""Training: the gradients it uses are the ones tested elsewhere, seeds do not meet, and both learn."""

import pytest
import torch
from torch.func import grad

from replicate.statistics.agreement import relative_error
from replicate.theory import policy_gradients as pg
from replicate.theory.adjoint import policy_gradient
from replicate.theory.rollout import double_integrator, draw_noise
from replicate.theory.training import (
    bptt_objective,
    critic_method,
    gradients_per_seed,
    grpo_objective,
    train,
    tune_and_train,
    tuned_rate,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def starts(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def quadratic(s: torch.Tensor) -> torch.Tensor:
    return pg.critic_features(s, degree=2)


def test_bptt_gradient_is_the_mean_of_equation_7():
    mdp = double_integrator()
    s0 = starts(3, generator())
    xi, _ = draw_noise(mdp, 3, 4, generator=generator(1))
    ours = grad(bptt_objective(mdp, gamma=0.9))(mdp.theta, s0, xi)
    assert relative_error(ours, policy_gradient(mdp, s0, xi, gamma=0.9).mean(0)) < 1e-10


def test_grpo_gradient_is_the_group_gradient_over_t():
    """Unbatched against the scores of ``policy_gradients``, on the same noise."""
    mdp, horizon = double_integrator(), 4
    s0 = starts(3, generator())
    groups = pg.sample_groups(mdp, s0, group=5, horizon=horizon, gamma=0.9, generator=generator(2))
    objective = grpo_objective(mdp, group=5, gamma=0.9)
    ours = grad(objective)(mdp.theta, s0.repeat_interleave(5, 0), groups.noise.flatten(0, 1))
    expected = (
        pg.group_gradients(groups, pg.outcome_weights(groups, baseline="mean", scale="std")).mean(0) / horizon
    )
    assert relative_error(ours, expected) < 1e-10


def test_seeds_together_are_what_they_are_alone():
    mdp = double_integrator()
    thetas = mdp.theta + 0.1 * torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    s0 = starts(3 * 8, generator(1)).unflatten(0, (3, 8))
    xi = torch.randn(3, 8, 4, 1, generator=generator(2), dtype=torch.float64)
    for objective in (bptt_objective(mdp, gamma=0.9), grpo_objective(mdp, group=4, gamma=0.9)):
        together = gradients_per_seed(objective, thetas, s0, xi)
        alone = torch.stack([grad(objective)(*x) for x in zip(thetas, s0, xi, strict=True)])
        assert relative_error(together, alone) < 1e-10


def test_both_learn_and_a_flipped_gradient_unlearns():
    mdp = double_integrator()
    options = {
        "starts": starts, "prompts": 4, "group": 4, "horizon": 8, "gamma": 1.0, "updates": 30,
        "learning_rate": 0.05, "seeds": 4, "evaluate_every": 30,
    }  # fmt: skip
    grpo, bptt = grpo_objective(mdp, group=4, gamma=1.0), bptt_objective(mdp, gamma=1.0)
    for objective in (grpo, bptt):
        seen, J, theta = train(mdp, objective, generator=generator(3), **options)
        assert seen.tolist() == [0.0, 30 * 16]
        assert (J[-1] > J[0] + 0.1).all()
        assert theta.shape == (4, 2)
        again = train(mdp, objective, generator=generator(3), **options)
        assert torch.equal(again[1], J)
    _, J, _ = train(mdp, lambda *x: -grpo(*x), generator=generator(3), **options)
    assert (J[-1] < J[0] - 0.1).all()


def test_advantages_of_neighbours_are_a_planted_error():
    mdp, s0 = double_integrator(), starts(3, generator()).repeat_interleave(5, 0)
    xi, _ = draw_noise(mdp, 15, 4, generator=generator(1))
    right, wrong = (
        grad(grpo_objective(mdp, group=5, gamma=0.9, exchanged=e))(mdp.theta, s0, xi) for e in (False, True)
    )
    assert relative_error(right, wrong) > 0.1


def test_the_actor_of_a_critic_is_the_generalised_advantage_on_the_score():
    """Against ``policy_gradients``, with the critic's weights given."""
    mdp, horizon = double_integrator(), 4
    s0 = starts(3, generator())
    groups = pg.sample_groups(mdp, s0, group=5, horizon=horizon, gamma=0.9, generator=generator(2))
    weights = torch.randn(horizon, 6, generator=generator(3), dtype=torch.float64)
    method = critic_method(mdp, gamma=0.9, gae_lambda=0.7, features=quadratic)
    ours = grad(method.objective)(mdp.theta, s0.repeat_interleave(5, 0), groups.noise.flatten(0, 1), weights)
    values = pg.critic_values(weights, groups, degree=2)
    expected = pg.group_gradients(groups, pg.critic_weights(groups, values, gamma=0.9, lam=0.7)).mean(0)
    assert relative_error(ours, expected) < 1e-10


def test_a_critic_without_penalty_is_the_least_squares_fit():
    mdp = double_integrator()
    groups = pg.sample_groups(
        mdp, starts(40, generator()), group=1, horizon=3, gamma=0.9, generator=generator(1)
    )
    method = critic_method(mdp, gamma=0.9, gae_lambda=1, features=quadratic, ridge=0)
    ours = method.fit(mdp.theta, groups.s0, groups.noise.flatten(0, 1))
    assert relative_error(ours, pg.fit_critic(groups, degree=2)) < 1e-8


OPTIONS = {
    "starts": starts,
    "prompts": 2,
    "group": 4,
    "horizon": 5,
    "gamma": 1.0,
    "updates": 6,
    "evaluate_every": 3,
}


def test_rates_side_by_side_are_what_they_are_alone():
    """Adam with its own learning rate, one rate after the other."""
    mdp = double_integrator()
    methods = (
        bptt_objective(mdp, gamma=1.0),
        critic_method(mdp, gamma=1.0, gae_lambda=0.9, features=quadratic),
    )
    for method in methods:
        _, J, theta = train(mdp, method, learning_rate=(0.1, 0.2), seeds=3, generator=generator(), **OPTIONS)
        for k, rate in enumerate((0.1, 0.2)):
            _, alone, last = train(mdp, method, learning_rate=rate, seeds=3, generator=generator(), **OPTIONS)
            assert relative_error(J[:, 3 * k : 3 * k + 3], alone) < 1e-10
            assert relative_error(theta[3 * k : 3 * k + 3], last) < 1e-10


def test_training_is_adam_of_torch():
    """One seed, by hand: the library's optimiser on theta itself."""
    mdp, objective = double_integrator(), bptt_objective(double_integrator(), gamma=1.0)
    _, _, found = train(mdp, objective, learning_rate=0.1, seeds=1, generator=generator(), **OPTIONS)
    rng, theta = generator(), mdp.theta.clone().requires_grad_()
    starts(128, rng), torch.randn(128, 5, 1, generator=rng, dtype=torch.float64)  # the evaluation's
    optimiser = torch.optim.Adam([theta], lr=0.1, maximize=True)
    for update in range(7):
        s0 = starts(2, rng).repeat_interleave(4, 0)
        xi = torch.randn(8, 5, 1, generator=rng, dtype=torch.float64)
        if update:  # the first batch is the critic's
            theta.grad = grad(objective)(theta.detach(), s0, xi)
            optimiser.step()
    assert relative_error(found[0], theta.detach()) < 1e-10


def test_a_tuned_rate_is_never_at_the_edge_of_what_was_tried():
    mdp = double_integrator()
    objective = bptt_objective(mdp, gamma=1.0)
    options = OPTIONS | {"horizon": 10, "updates": 12}
    rate, tried = tuned_rate(
        mdp, objective, learning_rates=(0.001, 0.003, 0.01), seeds=2, seed=0, extensions=8, **options
    )
    assert len(tried) > 3
    assert min(tried) < rate < max(tried)
    assert tried[rate] == max(tried.values())
    with pytest.raises(ValueError, match=r"learning_rates: expected the best inside the grid, got 0\.01 of"):
        tuned_rate(
            mdp, objective, learning_rates=(0.001, 0.003, 0.01), seeds=2, seed=0, extensions=0, **options
        )
    with pytest.raises(ValueError, match="learning_rates: expected at least three, got"):
        tuned_rate(mdp, objective, learning_rates=(0.1, 0.2), seeds=2, seed=0, **options)


def test_reported_seeds_are_not_those_of_the_tuning():
    mdp = double_integrator()
    objective = bptt_objective(mdp, gamma=1.0)
    grid = {"learning_rates": (0.03, 0.1, 0.3, 1.0, 3.0)}
    done = tune_and_train(
        mdp, objective, tuning_seeds=3, seeds=3, seed=5, **grid, **OPTIONS | {"updates": 24}
    )
    assert done.J.shape == (9, 3)
    assert done.gain.tolist() == (done.J[-1] - done.J[0]).tolist()
    assert abs(done.J[-1].mean().item() - done.tried[done.rate]) > 1e-6
