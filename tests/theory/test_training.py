"""Training: the gradients it uses are the ones tested elsewhere, seeds do not meet, and both learn."""

import torch
from torch.func import grad

from replicate.statistics.agreement import relative_error
from replicate.theory import policy_gradients as pg
from replicate.theory.adjoint import policy_gradient
from replicate.theory.rollout import double_integrator, draw_noise
from replicate.theory.training import bptt_objective, gradients_per_seed, grpo_objective, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def starts(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


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
