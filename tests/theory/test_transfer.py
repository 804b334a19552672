"""The transfer operator against samples, against itself at another grid, and its eigenvalue against the growth."""

import math

import numpy as np
import pytest
import torch

from replicate.statistics.agreement import z_test
from replicate.theory import adjoint, transfer
from replicate.theory import policy_gradients as pg
from replicate.theory.toys import SineMap


def table(mdp, horizons, **options):
    return {(e.estimator, e.horizon): e for e in transfer.estimates(mdp, horizons, **options)}


@pytest.mark.parametrize("gain", [0.5, 1.4, 4.0])
def test_three_estimators_have_one_mean_at_any_horizon(gain):
    """Also where samples cannot tell: at gain 4 and T = 14 one pathwise sample scatters by 3e5."""
    found = table(SineMap(gain), [1, 2, 7, 14])
    for T in (2, 7, 14):
        pd, sf, to_go = (found[name, T].mean for name in ("PD", "SF", "SF, to go"))
        assert abs(sf - pd) < 1e-8
        assert abs(to_go - pd) < 1e-8
        assert abs(pd) > 0.01
    assert found["PD", 1].mean == found["PD", 1].variance == 0  # the first reward precedes every action


def test_means_and_variances_are_those_of_samples():
    """n = 20000 trajectories of the rollout; the reward-to-go estimator with the exact E r_t as its baseline."""
    mdp, n, T = SineMap(1.4), 20_000, 6
    exact = table(mdp, [T])
    s0 = torch.zeros(n, 1, dtype=torch.float64)
    groups = pg.sample_groups(
        mdp, s0, group=1, horizon=T, gamma=1, generator=torch.Generator().manual_seed(0)
    )
    centred = (groups.rewards - groups.rewards.mean(0)).flip(-1).cumsum(-1).flip(-1)
    samples = {
        "PD": adjoint.policy_gradient(mdp, s0, groups.noise[:, 0], gamma=1),
        "SF": pg.group_gradients(groups, pg.outcome_weights(groups)),
        "SF, to go": pg.group_gradients(groups, centred),
    }
    for name, x in samples.items():
        mean, variance = exact[name, T].mean, exact[name, T].variance
        assert z_test(x, torch.tensor([mean], dtype=torch.float64)).worst < 4.5
        square = (x - mean) ** 2
        assert z_test(square, torch.tensor([variance], dtype=torch.float64)).worst < 4.5
        assert z_test(square, torch.tensor([1.3 * variance], dtype=torch.float64)).worst > 5


def test_the_grid_is_fine_enough():
    coarse, fine = (
        transfer.estimates(SineMap(4.0, noise_std=0.8), [9], points=points) for points in (128, 320)
    )
    assert [e.variance for e in coarse] == pytest.approx([e.variance for e in fine], rel=1e-9)


def test_the_growth_is_that_of_the_exact_variance_and_the_typical_one_that_of_a_long_walk():
    mdp = SineMap(2.0)
    rate, typical = transfer.growth(mdp)
    found = table(mdp, [38, 40])
    ratio = found["PD", 40].variance / found["PD", 38].variance
    assert math.log(ratio) / 2 == pytest.approx(rate, rel=1e-3)
    rng = np.random.default_rng(0)
    s, logs = np.zeros(2000), []
    for _ in range(300):
        logs.append(np.log((2 * np.cos(s)) ** 2))
        s = 2 * np.sin(s) + 0.3 + rng.normal(size=2000)
    per_walk = np.mean(logs[50:], axis=0)
    assert abs(per_walk.mean() - typical) < 4.5 * per_walk.std() / 2000**0.5 + 1e-3
    assert typical < 0 < rate


def test_what_cannot_be_computed_is_named():
    with pytest.raises(ValueError, match="horizons: expected at least 1, got 0"):
        transfer.estimates(SineMap(1.0), [0, 2])
    with pytest.raises(ValueError, match="points: expected a step of at most a quarter"):
        transfer.estimates(SineMap(1.0, noise_std=0.05), [2])
