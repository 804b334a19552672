"""Equations (2), (3), (10): both estimators are unbiased where they should be, and fail where A1 says so."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Exponential, Normal, Uniform
from torch.func import grad, jacrev

from replicate.statistics.agreement import relative_error, worst_z_bound, z_test
from replicate.theory import estimators as est
from replicate.theory import noise_laws, shift_policies
from replicate.theory.networks import mlp, mlp_init, mlp_size

f64 = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
FAMILIES = list(est.shift_families())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(a: torch.Tensor) -> torch.Tensor:
    """A smooth signal with no symmetry, coupling all coordinates."""
    return torch.tanh(1.3 * a[:, 0] + 0.4) + 0.3 * a.sum(-1) * torch.exp(-(a**2).sum(-1) / 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_expectations_by_quadrature_are_known_moments(family):
    law = est.shift_families(0.7)[family]
    mean = 0.7 * math.sqrt(6) / math.pi * 0.5772156649015329 if family == "Gumbel" else 0.0
    assert est.expectation(lambda x: torch.ones_like(x[:, 0]), law) == pytest.approx(1, rel=1e-11)
    assert est.expectation(lambda x: x[:, 0], law) == pytest.approx(mean, abs=1e-10)
    # Student's density falls like x^-6 only: its second moment is the hardest of these integrals.
    assert est.expectation(lambda x: (x[:, 0] - mean) ** 2, law) == pytest.approx(0.49, rel=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_stated_spread_and_a_normalised_density(family):
    law = est.shift_families(0.7)[family]
    xi = est.draw(law, 40_000, 1, generator=generator())
    assert xi.std().item() == pytest.approx(0.7, rel=0.03)
    x = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    assert law.log_prob(x).exp().sum().item() * 5e-4 == pytest.approx(1, abs=1e-6)


def test_logistic_samples_follow_its_density():
    """The empirical CDF against the closed form, at n = 40000: Kolmogorov-Smirnov."""
    x = est.draw(est.Logistic(0.8), 40_000, 1, generator=generator())[:, 0].sort().values
    gap = (torch.sigmoid(x / 0.8) - (torch.arange(40_000) + 0.5) / 40_000).abs().max().item()
    assert gap < 2 / math.sqrt(40_000)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [1, 3])
def test_both_estimators_have_the_same_mean(family, dim):
    """Paired on the same noise: the difference has mean zero in each coordinate, n = 20000."""
    law, mu = est.shift_families(0.8)[family], 0.3 * torch.ones(dim, dtype=torch.float64)
    sf = est.score_function(smooth, mu, law, 20_000, generator=generator())
    pd = est.pathwise(smooth, mu, law, 20_000, generator=generator())
    zero = torch.zeros(dim, dtype=torch.float64)
    assert z_test(sf - pd, zero).worst < worst_z_bound(dim)
    assert z_test(-sf - pd, zero).worst > 20
    assert z_test(sf - 1.3 * pd, zero).worst > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [1, 2])
def test_lemma_1_through_a_network(family, dim):
    """(10) with mu_theta an MLP of the state, in all of theta's coordinates."""
    size = mlp_size(2, 3, dim)
    theta, s = mlp_init(2, 3, dim, generator=generator(1)), f64([0.4, -0.9])
    mean = lambda theta: mlp(s, theta, hidden=3, outputs=dim)  # noqa: E731
    J = jacrev(mean)(theta)
    law = est.shift_families(0.8)[family]
    sf, pd = (
        route(smooth, mean(theta), law, 20_000, generator=generator()) @ J
        for route in (est.score_function, est.pathwise)
    )
    zero = torch.zeros(size, dtype=torch.float64)
    # In one dimension every coordinate is the same number times an entry of J; the bound holds all the more.
    assert z_test(sf - pd, zero).worst < worst_z_bound(size)
    assert z_test(sf + pd, zero).worst > 20


def test_the_chain_rule_through_mu_is_autograd_in_theta():
    theta, s = mlp_init(2, 3, 2, generator=generator(1)), f64([0.4, -0.9])
    mean = lambda theta: mlp(s, theta, hidden=3, outputs=2)  # noqa: E731
    law = est.shift_families(0.8)["logistic"]
    a = mean(theta) + est.draw(law, 5, 2, generator=generator())
    through_mu = est.score_function(smooth, mean(theta), law, 5, generator=generator()) @ jacrev(mean)(theta)
    for i in range(5):
        log_p = lambda theta, i=i: law.log_prob(a[i] - mean(theta)).sum()  # noqa: E731
        assert relative_error(through_mu[i], smooth(a)[i] * grad(log_p)(theta)) < 1e-12


def test_gaussian_score_function_is_the_textbook_formula():
    mu, sigma = f64([0.2, -0.5]), 0.6
    law = Normal(f64(0.0), f64(sigma))
    xi = est.draw(law, 7, 2, generator=generator())
    expected = smooth(mu + xi)[:, None] * xi / sigma**2
    assert relative_error(est.score_function(smooth, mu, law, 7, generator=generator()), expected) < 1e-14


def test_under_a_density_that_jumps_samples_converge_to_a_wrong_number():
    """SF of sin(1.5 a) is the true gradient less the jump term, and the true gradient is far off; n = 40000."""
    mu, phi, shape = f64([0.3]), lambda a: torch.sin(1.5 * a[:, 0]), noise_laws.exponential(0.5)
    sf = est.score_function(phi, mu, Exponential(f64(2.0)), 40_000, generator=generator())
    truth = shift_policies.true_gradient(1.5, 0.3, shape)
    left = truth - shift_policies.jump_term(shift_policies.Wave(1.5), 0.3, shape)
    assert z_test(sf, f64([left])).worst < worst_z_bound(1)
    assert z_test(sf, f64([truth])).worst > 20
    assert (
        est.score_function(phi, mu, Uniform(f64(-1.0), f64(1.5)), 50, generator=generator()).abs().max() == 0
    )


def test_pathwise_is_zero_on_a_step_and_score_function_is_right():
    """phi = 1[a_1 > 0]: the true gradient is the density at the edge."""
    step = lambda a: (a[:, 0] > 0).to(a.dtype)  # noqa: E731
    mu, law = f64([0.3, -0.2]), Normal(f64(0.0), f64(0.5))
    truth = f64([law.log_prob(-mu[0]).exp().item(), 0.0])
    sf = est.score_function(step, mu, law, 40_000, generator=generator())
    assert z_test(sf, truth).worst < worst_z_bound(2)
    assert est.pathwise(step, mu, law, 10, generator=generator()).abs().max() == 0


def test_where_autograd_has_no_graph_the_slope_is_measured_all_the_same():
    """A smooth signal cut off from the graph has the slope it has; a step that autograd knows has its zero twice."""
    mu, law = f64([0.3, -0.2]), Normal(f64(0.0), f64(0.5))
    cut = est.pathwise(lambda a: smooth(a.detach()), mu, law, 500, generator=generator())
    known = est.pathwise(smooth, mu, law, 500, generator=generator())
    assert (cut - known).abs().max() < 1e-6
    assert known.abs().max() > 0.1
    known = est.pathwise(lambda a: (1 + torch.sign(a[:, 0])) / 2, mu, law, 500, generator=generator())
    assert known.abs().max() == 0


def test_difference_quotients_are_central_inside_and_one_sided_at_the_ends():
    x = f64([[0.5], [0.0], [1.0]])
    found = est.difference_quotients(lambda x: x[:, 0] ** 2, x, step=0.25, low=0.0, high=1.0)[:, 0]
    assert found.tolist() == pytest.approx([1.0, 0.25, 1.75])
    both = est.difference_quotients(lambda x: x[:, 0] * x[:, 1], f64([[2.0, 3.0]]), step=0.1)
    assert both[0].tolist() == pytest.approx([3.0, 2.0])


def test_a_uniform_density_has_score_zero_up_to_its_very_ends():
    law = Uniform(f64(-1.0), f64(1.5))
    inside = f64([[math.nextafter(-1.0, 0)], [0.3], [math.nextafter(1.5, 0)]])
    assert est.score(law, inside).abs().max() == 0
    two = Uniform(f64([-1.0, 0.0]), f64([1.5, 2.0]))
    assert est.score(two, f64([[0.0, 1.0], [1.4999999999, 1e-12]])).abs().max() == 0


@settings(max_examples=5, deadline=None, derandomize=True)
@given(dim=st.integers(1, 4), sigma=st.floats(0.3, 2), shift=st.floats(-2, 2), seed=st.integers(0, 9))
def test_quadratic_variances_are_what_samples_show(dim, sigma, shift, seed):
    """Total variances against 30000 samples, in standard errors of the squared deviations."""
    g = generator(seed)
    H = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    H, b, mu = H + H.T, *torch.randn(2, dim, generator=g, dtype=torch.float64)
    phi = lambda a: 0.5 * ((a @ H) * a).sum(-1) + a @ b  # noqa: E731
    law, n = Normal(f64(0.0), f64(sigma)), 30_000
    sf_exact, pd_exact = est.quadratic_variances(H, b, mu, sigma, baseline=shift)
    sf = est.score_function(phi, mu, law, n, generator=g, baseline=shift)
    pd = est.pathwise(phi, mu, law, n, generator=g)
    for samples, exact in ((sf, sf_exact), (pd, pd_exact)):
        square = (samples - (H @ mu + b)).square().sum(-1, keepdim=True)
        assert z_test(square, f64([exact])).worst < 4.5
        assert z_test(square, f64([1.3 * exact])).worst > 5


@settings(max_examples=10, deadline=None, derandomize=True)
@given(dim=st.integers(1, 8), sigma=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_with_the_mean_as_baseline_the_variance_ratio_is_a_short_formula(dim, sigma, seed):
    g = generator(seed)
    H = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    H, b, mu = H + H.T, *torch.randn(2, dim, generator=g, dtype=torch.float64)
    mean = (0.5 * mu @ H @ mu + b @ mu + 0.5 * sigma**2 * torch.trace(H)).item()
    sf, pd = est.quadratic_variances(H, b, mu, sigma, baseline=mean)
    v = H @ mu + b
    formula = (dim + 4) / 2 + (dim + 1) * (v @ v / (sigma**2 * H.square().sum())).item()
    assert sf / pd == pytest.approx(formula, rel=1e-10)


def test_the_optimal_baseline_minimises_the_variance():
    dim, law = 4, Normal(f64(0.0), f64(0.5))
    H, b, mu = (
        torch.eye(dim, dtype=torch.float64),
        torch.zeros(dim, dtype=torch.float64),
        torch.ones(dim, dtype=torch.float64),
    )
    phi = lambda a: 0.5 * (a**2).sum(-1)  # noqa: E731
    best = est.optimal_baseline(phi, mu, law, 100_000, generator=generator())
    # E[phi |e|^2] / d with a = mu + sigma e: phi(mu) + sigma^2 (d + 2) / 2
    assert best == pytest.approx(2 + 0.25 * (dim + 2) / 2, rel=0.01)
    variance = lambda c: est.quadratic_variances(H, b, mu, 0.5, baseline=c)[0]  # noqa: E731
    assert variance(best) < min(variance(0.0), variance(best + 0.2), variance(best - 0.2))


def test_a_baseline_changes_no_mean_and_the_sample_itself_as_baseline_does():
    mu, law, zero = f64([0.3]), Normal(f64(0.0), f64(0.8)), f64([0.0])

    def sf(baseline: float) -> torch.Tensor:
        return est.score_function(smooth, mu, law, 20_000, generator=generator(), baseline=baseline)

    pd = est.pathwise(smooth, mu, law, 20_000, generator=generator())
    assert z_test(sf(5.0) - pd, zero).worst < worst_z_bound(1)
    itself = 0 * sf(0.0)
    assert z_test(itself - pd, zero).worst > 20


def test_the_seed_decides_and_the_global_state_is_left_alone():
    law = est.shift_families()["Student-t"]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = est.draw(law, 5, 2, generator=generator(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(first, est.draw(law, 5, 2, generator=generator(3)))
    assert not torch.equal(first, est.draw(law, 5, 2, generator=generator(4)))


def test_vector_laws_are_accepted_and_unfit_ones_named():
    mu = f64([0.1, 0.2])
    covariance = f64([[1.0, 0.5], [0.5, 2.0]])
    correlated = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    sf = est.score_function(smooth, mu, correlated, 20_000, generator=generator())
    pd = est.pathwise(smooth, mu, correlated, 20_000, generator=generator())
    assert z_test(sf - pd, 0 * mu).worst < worst_z_bound(2)
    three = Normal(torch.zeros(3, dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match=r"noise: expected a law of shape \[\] or \[2\], got \[3\]"):
        est.score_function(smooth, mu, three, 5, generator=generator())
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        est.pathwise(smooth, mu, correlated, 0, generator=generator())
    with pytest.raises(ValueError, match=r"phi: expected values of shape \[5\], got \[5, 2\]"):
        est.pathwise(lambda a: a, mu, correlated, 5, generator=generator())
    with pytest.raises(ValueError, match="H: expected a symmetric matrix"):
        est.quadratic_variances(f64([[1.0, 2.0], [0.0, 1.0]]), mu, mu, 1.0)


def test_total_variance_and_its_error_are_the_gaussian_moments():
    """Components of variance 4 and 1: the total is 5, and |x - mean|^2 has variance 2 (4^2 + 1^2)."""
    n = 20_000
    x = torch.randn(n, 2, generator=generator(), dtype=torch.float64) * f64([2.0, 1.0]) + f64([30.0, -7.0])
    variance, error = est.total_variance(x)
    assert variance == pytest.approx(torch.trace(x.T.cov()).item(), rel=1e-12)
    assert abs(variance - 5) < 4 * error
    assert error == pytest.approx((34 / n) ** 0.5, rel=0.05)
    assert est.total_variance(f64([[1.0], [3.0]]))[0] == pytest.approx(2)
    with pytest.raises(ValueError, match="samples: expected at least 2 rows for a variance, got 1"):
        est.total_variance(x[:1])


def test_a_network_names_a_theta_of_the_wrong_size():
    with pytest.raises(ValueError, match="theta: expected 13 parameters, got 5"):
        mlp(f64([0.1, 0.2]), torch.zeros(5, dtype=torch.float64), hidden=3, outputs=1)
