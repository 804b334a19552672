"""The family on sampled groups: names, the plant, what squared noise means."""

import pytest
import torch

from replicate.theory import family
from replicate.theory import policy_gradients as pg
from replicate.theory.rollout import double_integrator, rollout


def test_the_plant_forgets_as_it_says():
    plant = family.plant(0.25, noise_std=0.5)
    path = rollout(plant, torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 3, 1, dtype=torch.float64))
    assert path.states[0, :, 0].tolist() == pytest.approx([1, 0.25, 0.25**2, 0.25**3])


def test_squared_noise_is_one_where_signal_and_noise_are_equal():
    truth = torch.tensor([3.0, 4.0])
    samples = truth + torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 10.0], [0.0, -10.0]])
    assert family.squared_noise(samples, truth, group=1, blocks=2).tolist() == [1, 4]
    assert family.squared_noise(samples, truth, group=8, blocks=1).tolist() == [20]
    with pytest.raises(ValueError, match="samples: expected a multiple of 3 rows, got 4"):
        family.squared_noise(samples, truth, group=1, blocks=3)


def test_a_quadratic_critic_fits_the_returns_that_it_can_represent():
    """Without noise the return-to-go is the value: least squares meets it."""
    cart = double_integrator(noise_std=1e-8)
    starts = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = pg.sample_groups(
        cart, starts, group=2, horizon=3, gamma=0.9, generator=torch.Generator().manual_seed(1)
    )
    good, poor = (family.fitted_critic(groups, degree=k)(groups.states) for k in (2, 1))
    assert (good - groups.returns_to_go).abs().max() < 1e-5
    assert (poor - groups.returns_to_go).abs().max() > 0.1
    assert good.shape == groups.returns_to_go.shape


def test_spread_is_the_variance_about_the_true_mean():
    found = family.spread(torch.tensor([[1.0, 2.0], [1.0, -2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert found.mean == 4
    assert found.error == 0
    samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = family.spread(samples, torch.zeros(2, dtype=torch.float64))
    assert found.z(2.0) < 4
    assert found.z(torch.tensor(2.3)) > 5


def test_against_the_horizon_samples_meet_the_closed_form():
    plant, s0 = family.plant(0.5, noise_std=0.5), torch.tensor([0.5], dtype=torch.float64)
    found = family.against_horizon(
        plant, s0, 4, group=4, groups=4000, blocks=400, generator=torch.Generator().manual_seed(0)
    )
    assert list(found) == ["RLOO", "critic, baseline only", "exact critic", "BPTT"]
    for name, (exact, blocks) in found.items():
        assert abs(blocks.mean() - exact) < 4.5 * blocks.std() / 20, name
