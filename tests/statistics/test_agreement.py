"""The yardsticks themselves: they measure what they say and refuse what would fool them."""

import math

import numpy as np
import pytest
import torch

from replicate.statistics.agreement import (
    angle,
    log_slope,
    monte_carlo_slope,
    relative_error,
    worst_z_bound,
    z_test,
)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relative_error_is_scale_free_and_sees_a_nan():
    x = _normal(3, 4)
    assert relative_error(x, x) == 0
    assert relative_error(x, -x) == pytest.approx(2)
    assert relative_error(1e9 * x, 1.001e9 * x) == pytest.approx(1e-3, rel=2e-3)
    assert relative_error(0 * x, 0 * x) == 0
    assert math.isnan(relative_error(x, x * torch.nan))


def test_relative_error_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"y: expected the shape of x, \(3, 1\), got \(3,\)"):
        relative_error(_normal(3, 1), _normal(3))


def test_z_of_a_shifted_mean_is_the_shift_in_standard_errors():
    samples = _normal(10_000, 2)
    zero = z_test(samples, torch.zeros(2, dtype=torch.float64))
    assert zero.worst < worst_z_bound(2)
    shifted = z_test(samples, 5 * zero.standard_error)
    torch.testing.assert_close(shifted.z, zero.z - 5)


def test_z_of_constant_samples_is_zero_or_infinite():
    same = torch.full((5, 1), 2.0, dtype=torch.float64)
    assert z_test(same, torch.tensor([2.0], dtype=torch.float64)).worst == 0
    assert z_test(same, torch.tensor([2.1], dtype=torch.float64)).worst == math.inf


def test_z_needs_two_rows():
    with pytest.raises(ValueError, match="samples: expected at least 2 rows"):
        z_test(_normal(1, 2), _normal(2))


def test_worst_z_bound_is_the_normal_quantile():
    assert worst_z_bound(1, false_alarm=0.05) == pytest.approx(1.959964, abs=1e-5)
    assert worst_z_bound(10) > worst_z_bound(1)


def test_log_slope_recovers_a_power_law_and_a_growth_rate():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert log_slope(x, 3 * x**-0.5).slope == pytest.approx(-0.5)
    assert log_slope(x, np.exp(0.7 * x), log_x=False).slope == pytest.approx(0.7)
    noisy = log_slope(x, 3 * x**-0.5 * np.array([1.1, 0.9, 1.1, 0.9]))
    assert noisy.low < -0.5 < noisy.high


@pytest.mark.parametrize(("x", "y"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [1.0, -1.0, 2.0])])
def test_log_slope_refuses_what_has_no_fit(x, y):
    with pytest.raises(ValueError, match="x, y: expected"):
        log_slope(x, y)


def test_monte_carlo_slope_is_one_half_for_independent_samples_and_flat_for_a_bias():
    samples, zero = _normal(200 * 85, 2), torch.zeros(2, dtype=torch.float64)
    rms, errors, slope = monte_carlo_slope(samples, zero, [1, 4, 16, 64], blocks=200)
    assert abs(slope.slope + 0.5) < 3 * (slope.high - slope.low) / 3.92
    assert rms[0] == pytest.approx(2**0.5, abs=4 * errors[0])
    assert abs(monte_carlo_slope(samples, zero + 9, [1, 4, 16, 64], blocks=200)[2].slope) < 0.02
    with pytest.raises(ValueError, match="samples: expected at least 17000 rows, got 10"):
        monte_carlo_slope(samples[:10], zero, [1, 4, 16, 64], blocks=200)


def test_an_angle_is_exact_where_it_is_small_and_ignores_lengths():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert angle(x, 3 * x) == 0
    assert angle(x, torch.tensor([0.0, -2.0]).double()) == pytest.approx(90)
    assert angle(x, torch.tensor([1.0, 1e-9]).double()) == pytest.approx(np.rad2deg(1e-9), rel=1e-6)
    assert angle(x, -x) == pytest.approx(180)
