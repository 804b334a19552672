"""Lemma 1 without samples: the sides meet a closed form, jumps are accounted for, variances are those of samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Beta, Normal

from replicate.statistics.agreement import worst_z_bound, z_test
from replicate.theory import estimators, noise_laws
from replicate.theory import shift_policies as shift

SCALE = 0.6
CONTINUOUS = {**noise_laws.smooth(SCALE), **noise_laws.kinked(SCALE)}
JUMPING = noise_laws.jumping(SCALE)
f64 = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731


@pytest.mark.parametrize("omega", [0.4, 1.5, 8.0])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_both_sides_are_the_true_gradient_where_the_density_is_continuous(name, omega):
    law = CONTINUOUS[name]
    for mu in (-1.1, 0.3):
        truth = shift.true_gradient(omega, mu, law)
        sf, pd = shift.lemma_sides(shift.Wave(omega), mu, law)
        assert (sf, pd) == pytest.approx((truth, truth), abs=1e-10)
        assert shift.jump_term(shift.Wave(omega), mu, law) == 0


@pytest.mark.parametrize("name", JUMPING)
def test_a_jump_leaves_its_height_times_the_signal(name):
    law, phi, mu = JUMPING[name], shift.Wave(1.5), 0.3
    truth, (sf, pd) = shift.true_gradient(1.5, mu, law), shift.lemma_sides(phi, mu, law)
    assert pd == pytest.approx(truth, abs=1e-10)
    assert abs(sf - truth) > 0.1
    assert sf + shift.jump_term(phi, mu, law) == pytest.approx(truth, abs=1e-10)


def test_a_plane_wave_s_gradient_is_that_of_its_mean():
    law, omega, mu = noise_laws.gumbel(SCALE), np.array([0.5, -1.0, 0.3]), np.array([0.1, 0.2, -0.4])

    def mean(mu):
        return (np.exp(1j * omega @ mu) * np.prod(law.characteristic(omega))).imag

    h = 1e-5
    slopes = [(mean(mu + h * e) - mean(mu - h * e)) / (2 * h) for e in np.eye(3)]
    assert shift.true_gradient(omega, mu, law) == pytest.approx(slopes, abs=1e-9)
    single = shift.true_gradient(0.5, 0.1, law)
    assert shift.true_gradient(omega[:1], mu[:1], law) == pytest.approx([single], rel=1e-14)


@pytest.mark.parametrize("name", [*CONTINUOUS, "exponential", "two halves"])
def test_for_the_scale_a_jump_at_zero_is_harmless(name):
    law, phi = {**CONTINUOUS, **JUMPING}[name], shift.Wave(1.5)
    sf, pd = shift.scale_sides(phi, 0.3, 0.8, law)
    truth = shift.true_scale_gradient(phi, 0.3, 0.8, law)
    assert (sf, pd) == pytest.approx((truth, truth), abs=1e-10)


def test_for_the_scale_jumps_elsewhere_are_not():
    law, phi = JUMPING["uniform"], shift.Wave(1.5)
    sf, pd = shift.scale_sides(phi, 0.3, 0.8, law)
    left = -math.fsum(float(phi(0.3 + 0.8 * c)) * c * height for c, height in law.jumps) / 0.8
    assert abs(sf - pd) > 0.1
    assert sf + left == pytest.approx(pd, abs=1e-10)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    omega=st.floats(0.5, 5),
    mu=st.floats(-2, 2),
    sigma=st.floats(0.3, 1.2),
    d_a=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_the_variances_of_a_wave_are_what_samples_show(omega, mu, sigma, d_a, seed):
    generator, noise, n = torch.Generator().manual_seed(seed), Normal(f64(0.0), f64(sigma)), 40_000
    mean = math.sin(omega * mu) * math.exp(-((omega * sigma) ** 2) / 2)
    location = torch.zeros(d_a, dtype=torch.float64) + mu
    phi = lambda a: torch.sin(omega * a[:, 0])  # noqa: E731
    sf = estimators.score_function(phi, location, noise, n, generator=generator, baseline=mean)
    pd = estimators.pathwise(phi, location, noise, n, generator=generator)
    for samples, exact in zip((sf, pd), shift.wave_variances(omega, mu, sigma, d_a=d_a), strict=True):
        variance, error = estimators.total_variance(samples)
        assert abs(variance - exact) < 4.5 * error


def test_a_ratio_of_variances_comes_with_its_error():
    """Gaussian columns of variances 4 + 4 and 1 + 1: the ratio is 4, with relative error sqrt(1/n + 1/n)."""
    generator, n = torch.Generator().manual_seed(0), 20_000
    x, y = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    ratio, error = shift.variance_ratio(2 * x, y)
    assert abs(ratio - 4) < 4 * error
    assert error == pytest.approx(4 * math.sqrt(2 / n), rel=0.05)


def test_a_random_quadratic_has_the_stated_slope_and_mean():
    phi = shift.random_quadratic(3, generator=torch.Generator().manual_seed(0))
    v = torch.func.grad(lambda a: phi(a[None])[0])(phi.mu)
    assert torch.equal(phi.H, phi.H.T)
    assert v.norm().item() == pytest.approx(phi.H.norm().item(), rel=1e-12)
    xi = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert z_test(phi(phi.mu + 0.7 * xi)[:, None], f64([phi.mean(0.7)])).worst < worst_z_bound(1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(mu=st.floats(-4, 4), sigma=st.floats(0.1, 3), d_a=st.integers(1, 64))
def test_at_the_crossing_the_variances_meet_and_change_order(mu, sigma, d_a):
    omega = shift.crossing(mu, sigma, d_a=d_a)
    sf, pd = shift.wave_variances(omega, mu, sigma, d_a=d_a)
    assert sf == pytest.approx(pd, rel=1e-8)
    for factor, order in ((0.8, 1), (1.25, -1)):
        sf, pd = shift.wave_variances(factor * omega, mu, sigma, d_a=d_a)
        assert order * (sf - pd) > 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(mu=st.floats(-2, 2), sigma=st.floats(0.3, 2))
def test_in_one_dimension_the_crossing_depends_on_the_phase_alone(mu, sigma):
    """Two roots of two equations."""
    omega = shift.crossing(mu, sigma)
    assert shift.phase_crossing(math.cos(2 * omega * mu)) == pytest.approx(omega * sigma, rel=1e-9)
    assert 1.1089 < omega * sigma < 1.3194


def test_samples_put_the_crossing_at_its_place():
    draws = 0.6 * torch.randn(12, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = f64([[shift.sampled_crossing(xi, 0.3, 0.6)] for xi in draws])
    assert z_test(found, f64([shift.crossing(0.3, 0.6)])).worst < worst_z_bound(1)
    assert z_test(found, f64([1.2 / 0.6])).worst > 5


def test_in_many_dimensions_the_crossing_is_at_the_root_of_their_number():
    assert shift.crossing(0.3, 0.6, d_a=64) * 0.6 == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize("cut", [0.5, 1e-2, 1e-5])
def test_the_score_s_second_moment_up_to_a_cut(cut):
    law = noise_laws.bump(1, 1 / math.sqrt(5))
    moment = law.integral(lambda x: law.slope(x) ** 2 / law.density(x), low=cut - 1, high=1 - cut)
    assert law.high == pytest.approx(1, rel=1e-15)
    assert moment == pytest.approx(shift.edge_second_moment(cut), rel=1e-10)


def test_the_sample_second_moment_grows_with_the_logarithm_of_n():
    """Where the noise's edge is cut at n^(-1/2) the exact integral grows as predicted."""
    phi, mu, law = shift.Wave(1.5), 0.3, noise_laws.bump(1, SCALE)
    baseline = law.integral(lambda x: phi(mu + x) * law.density(x))

    def moment(cut):
        edge = law.high * (1 - cut)
        square = lambda x: ((phi(mu + x) - baseline) * law.slope(x)) ** 2 / law.density(x)  # noqa: E731
        return law.integral(square, low=-edge, high=edge)

    growth = (moment(1e-6) - moment(1e-5)) / math.log(100)  # n a hundred times as large
    assert shift.edge_growth(phi, mu, SCALE, baseline=baseline) == pytest.approx(growth, rel=1e-4)


def test_an_infinite_variance_leaves_the_mean_alone():
    law, end = noise_laws.bump(1, SCALE), SCALE * math.sqrt(5)
    affine = torch.distributions.AffineTransform(-end, 2 * end)
    noise = torch.distributions.TransformedDistribution(Beta(f64(2.0), f64(2.0)), affine)
    generator = torch.Generator().manual_seed(0)
    sf = estimators.score_function(
        lambda a: torch.sin(1.5 * a[:, 0]), f64([0.3]), noise, 200_000, generator=generator
    )
    assert z_test(sf, f64([shift.true_gradient(1.5, 0.3, law)])).worst < worst_z_bound(1)
