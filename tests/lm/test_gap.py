"""The softmax Jacobian and its bound (Prop. 2, A5), of a distribution and of a Gumbel-softmax sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import expit

from replicate.lm import gap, relaxed, spectra

EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(p: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return torch.linalg.eigvalsh(gap.softmax_jacobian(p, temperature=temperature))[..., -1]


@pytest.mark.parametrize("vocab", [1, 2, 3, 7, 60])
@pytest.mark.parametrize("sharpness", [0.0, 0.1, 1.0, 10.0, 100.0])
def test_norm_equals_a_dense_eigen_solver(vocab, sharpness):
    p = (sharpness * torch.randn(50, vocab, generator=seeded(vocab), dtype=torch.float64)).softmax(-1)
    assert (gap.softmax_jacobian_norm(p, temperature=0.3) - dense(p, 0.3)).abs().max() < EXACT


@pytest.mark.parametrize(
    "p",
    [
        [1.0, 0.0, 0.0],
        [0.5, 0.5, 0.0],
        [0.25, 0.25, 0.25, 0.25],
        [0.4, 0.4, 0.2],
        [0.4, 0.4 - 1e-13, 0.2, 1e-13],
        [0.3, 0.3, 0.3, 0.1],
        [0.7, 0.1, 0.1, 0.1],
        [1 - 1e-9, 1e-9],
        [1 - 1e-15, 1e-15],
        [1 - 3e-300, 1e-300, 1e-300, 1e-300],
    ],
)
def test_norm_of_awkward_distributions(p):
    p = torch.tensor(p, dtype=torch.float64)
    assert abs(gap.softmax_jacobian_norm(p) - dense(p)) < 1e-15


def test_norm_keeps_relative_accuracy_near_certainty():
    """Two tokens: the norm is 2 p (1 - p) exactly, however small 1 - p is."""
    q = torch.logspace(-14, -1, 14, dtype=torch.float64)
    found = gap.softmax_jacobian_norm(torch.stack([1 - q, q], -1))
    torch.testing.assert_close(found, 2 * q * (1 - q), rtol=1e-2 * 1e-1, atol=0)
    torch.testing.assert_close(found[4:], (2 * q * (1 - q))[4:], rtol=1e-9, atol=0)


def test_closed_forms_at_the_vocabulary_of_olmo2():
    n = 100352
    uniform, coin = torch.full((n,), 1 / n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    coin[[17, 90000]] = 0.5
    assert abs(gap.softmax_jacobian_norm(uniform) - 1 / n) < 1e-15
    assert abs(gap.softmax_jacobian_norm(coin) - 0.5) < 1e-15
    assert abs(gap.entropy_bound(coin) - 0.5) < 1e-14
    batch = torch.randn(2, 3, n, generator=seeded(), dtype=torch.float64).mul(4).softmax(-1)
    x = gap.softmax_jacobian_norm(batch)
    assert x.shape == (2, 3)
    v = torch.randn(2, 3, n, generator=seeded(1), dtype=torch.float64)
    for _ in range(400):  # power iteration on diag(p) - p p^T, applied without forming it
        v = batch * v - batch * (batch * v).sum(-1, keepdim=True)
        norm = v.norm(dim=-1)
        v = v / norm[..., None]
    assert (norm <= x + 1e-12).all()
    assert (norm / x > 0.99).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda x: sum(x) > 1e-3))
def test_a5_holds_for_any_distribution(weights):
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum()
    norm, trace, bound = gap.softmax_jacobian_norm(p), gap.trace_bound(p), gap.entropy_bound(p)
    assert abs(norm - dense(p)) < EXACT
    assert norm <= trace + 1e-14
    assert trace <= bound + 1e-14
    assert abs(trace - (1 - p.square().sum())) < 1e-14


def test_a5_is_sharp_and_a_smaller_constant_fails():
    coin = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert abs(gap.softmax_jacobian_norm(coin) / gap.entropy_bound(coin) - 1) < 1e-12
    assert gap.softmax_jacobian_norm(coin) > 0.999 * gap.entropy_bound(coin)
    H = torch.special.entr(coin).sum()
    assert abs(gap.normalised_constant(50) * H / math.log(50) - 0.5) < 1e-12
    assert gap.softmax_jacobian_norm(coin) > H / math.log(50)  # the normalised form with constant 1


def test_float32_rows_keep_their_type_and_shape():
    p = torch.randn(4, 9, generator=seeded()).softmax(-1)
    assert gap.softmax_jacobian_norm(p).dtype == torch.float32
    torch.testing.assert_close(gap.softmax_jacobian_norm(p).double(), dense(p.double()), rtol=1e-5, atol=1e-7)
    assert gap.entropy_bound(p[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("probs", "temperature", "message"),
    [
        ([0.5, 0.6], 1.0, "probs: expected rows that sum to 1, got a sum of 1.1"),
        ([1.5, -0.5], 1.0, "probs: expected finite numbers of at least 0"),
        ([float("nan"), 1.0], 1.0, "probs: expected finite"),
        ([0.5, 0.5], 0.0, "temperature: expected a positive number, got 0.0"),
    ],
)
def test_what_is_no_distribution_is_refused(probs, temperature, message):
    for function in (gap.softmax_jacobian_norm, gap.entropy_bound, gap.trace_bound):
        with pytest.raises(ValueError, match=message):
            function(torch.tensor(probs, dtype=torch.float64), temperature=temperature)


def test_a_cold_gumbel_jacobian_has_mean_norm_one_minus_sum_of_squares():
    pi = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    g = relaxed.gumbel(40_000, 4, generator=seeded(5))
    soft = relaxed.soft_token(pi.log() + g, 0.03, None, False)
    norms = gap.softmax_jacobian_norm(soft, temperature=0.03)
    se = norms.std() / 200
    assert abs(norms.mean() - gap.trace_bound(pi)) < 4 * se
    assert abs(norms.mean() - gap.softmax_jacobian_norm(pi)) > 4 * se  # not the norm of the mean
    assert (norms <= gap.entropy_bound(soft, temperature=0.03) * (1 + 1e-9)).all()


@pytest.mark.parametrize("logit", [0.0, 1.3, -3.0])
@pytest.mark.parametrize("tau", [0.2, 1.0, 2.5])
def test_mean_gumbel_norm_of_two_tokens(logit, tau):
    """Against adaptive quadrature, and against samples of the relaxed token itself."""

    def integrand(x):
        return 2 / tau * expit(x / tau) * expit(-x / tau) * expit(x - logit) * expit(logit - x)

    exact, _ = integrate.quad(integrand, -60, 60, points=[0.0, logit], limit=400, epsabs=1e-13)
    found = gap.mean_gumbel_norm(logit, temperature=tau)
    assert abs(found - exact) < EXACT
    logits = torch.tensor([logit, 0.0], dtype=torch.float64)
    soft = relaxed.soft_token(logits + relaxed.gumbel(40_000, 2, generator=seeded(6)), tau, None, False)
    norms = gap.softmax_jacobian_norm(soft, temperature=tau)
    assert abs(norms.mean() - found) < 4 * norms.std() / 200


def test_mean_gumbel_norm_goes_to_its_limit_with_the_square_of_the_temperature():
    pi = torch.tensor([0.4, 0.0], dtype=torch.float64).softmax(-1)
    errors = [
        abs(gap.mean_gumbel_norm(0.4, temperature=tau) - float(gap.trace_bound(pi))) for tau in (0.08, 0.04)
    ]
    assert errors[0] < 1e-2
    assert 1.9 < math.log2(errors[0] / errors[1]) < 2.1
    assert abs(gap.mean_gumbel_norm(0.0, temperature=1.0) - 1 / 3) < EXACT
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        gap.mean_gumbel_norm(1.0, temperature=0.0)


def three_tokens(pi: torch.Tensor, tau: float) -> tuple[float, torch.Tensor, float]:
    """Mean norm, mean Jacobian and mean squared norm of a Gumbel-softmax of three tokens."""
    soft, weight = gap.gumbel_quadrature(pi, temperature=tau)
    assert abs(weight.sum() - 1) < 1e-8
    norms = gap.softmax_jacobian_norm(soft, temperature=tau)
    return (
        float(weight @ norms),
        gap.mean_jacobian(soft, weight, temperature=tau),
        float(weight @ norms.square()),
    )


@pytest.mark.parametrize("tau", [3.0, 1.0, 0.3])
def test_the_mean_jacobian_of_three_tokens_is_the_derivative_of_the_mean_token(tau):
    """Quadrature against differences of quadrature, and against two tokens where the third is impossible."""
    pi, h = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 1e-3

    def mean(log):
        soft, weight = gap.gumbel_quadrature(log.softmax(-1), temperature=tau)
        return weight @ soft

    differences = [(mean(pi.log() + h * v) - mean(pi.log() - h * v)) / (2 * h) for v in torch.eye(3).double()]
    soft, weight = gap.gumbel_quadrature(pi, temperature=tau)
    found = gap.mean_jacobian(soft, weight, temperature=tau)
    torch.testing.assert_close(found, torch.stack(differences, 1), rtol=0, atol=1e-6)
    two = torch.tensor([0.7, 0.3 - 1e-9, 1e-9], dtype=torch.float64)
    if tau < 1:  # so cold that an impossible token has no weight
        exact = gap.mean_gumbel_norm(math.log(7 / 3), temperature=tau)
        soft, weight = gap.gumbel_quadrature(two, temperature=tau)
        assert spectra.operator_norm(gap.mean_jacobian(soft, weight, temperature=tau)) == pytest.approx(
            exact, abs=1e-6
        )


def test_quadrature_is_for_three_tokens():
    with pytest.raises(ValueError, match=r"pi: expected 3 tokens, got shape \[2\]"):
        gap.gumbel_quadrature(torch.tensor([0.5, 0.5]).double(), temperature=1.0)


def test_flipped_tokens_count_the_softmax_jacobian():
    """Entry by entry against a difference of the policy itself, which binomial counts scatter around."""
    pi, n, step = torch.tensor([0.6, 0.25, 0.15], dtype=torch.float64), 100_000, 0.2
    found, z = gap.flipped_tokens(pi, relaxed.gumbel(n, 3, generator=seeded(4)), step=step)
    for v in range(3):
        nudge = step / 2 * torch.eye(3).double()[v]
        exact = ((pi.log() + nudge).softmax(-1) - (pi.log() - nudge).softmax(-1)) / step
        assert (found[:, v] - exact).abs().max() < 4 * (0.25 / (n * step)) ** 0.5
    assert found.sum(0).abs().max() < 1e-12  # every draw that leaves a token arrives at another
    assert z.abs().max() < 4
    assert not z.diagonal().any()
    wrong = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    off = (found - gap.softmax_jacobian(wrong)) / (gap.softmax_jacobian(wrong).abs() / (n * step)).sqrt()
    assert off.abs().max() > 6


def test_the_limits_of_a_cold_gumbel_softmax_by_integration():
    """Mean norm to 1 - sum pi^2, mean Jacobian to that of pi, tau times the squared norm's mean to a third of it."""
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trace, own = float(gap.trace_bound(pi)), gap.softmax_jacobian(pi)
    warm, cold = three_tokens(pi, 0.2), three_tokens(pi, 0.1)
    # Triple ties, an area of tau^2 with a norm of order 1 / tau, make the error of the norms first order.
    assert 0.9 < math.log2((warm[0] - trace) / (cold[0] - trace)) < 1.2
    assert abs(2 * cold[0] - warm[0] - trace) < 5e-3
    assert abs(cold[0] - float(dense(pi))) > 0.1
    assert (cold[1] - own).abs().max() < 2e-3
    assert abs(2 * 0.1 * cold[2] - 0.2 * warm[2] - trace / 3) < 5e-3 * trace


@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_gumbel_moments_against_integration(tau):
    pi, n = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 60_000
    mean, matrix, square = three_tokens(pi, tau)
    found = gap.gumbel_moments(pi, relaxed.gumbel(n, 3, generator=seeded(2)), temperature=tau)
    assert found["tau"] == tau
    assert abs(found["mean"] - mean) < 4 * found["se"]
    assert found["se"] == pytest.approx(((square - mean**2) / n) ** 0.5, rel=0.02)
    assert found["rms"] == pytest.approx(square**0.5, rel=0.02)
    assert found["norm of mean"] == pytest.approx(spectra.operator_norm(matrix), rel=0.03)
    assert 0.9 < found["worst / own bound"] <= 1 + 1e-9


def test_gumbel_moments_test_the_mean_jacobian_against_its_limit():
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    noise = relaxed.gumbel(40_000, 3, generator=seeded(2))
    assert gap.gumbel_moments(pi, noise, temperature=0.03)["z of mean"] < 4
    assert gap.gumbel_moments(pi, noise, temperature=1.0)["z of mean"] > 20


def test_a_cold_entry_that_is_nearly_always_zero_is_measured_in_its_exact_standard_error():
    """Few draws move the rarest entry. Over its own deviation the worst of these twelve would be 4.0 and not 2.4."""
    pi = torch.tensor([0.55, 0.2, 0.15, 0.07, 0.03], dtype=torch.float64)
    z = [
        gap.gumbel_moments(pi, relaxed.gumbel(20_000, 5, generator=seeded(k)), temperature=0.02)["z of mean"]
        for k in range(12)
    ]
    assert max(z) < 3.2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12), st.floats(0.05, 1.0))
def test_up_to_temperature_one_the_policys_entropy_bounds_a_soft_token(logits, tau):
    z = torch.tensor(logits, dtype=torch.float64)
    norm = gap.softmax_jacobian_norm((z / tau).softmax(-1), temperature=tau)
    assert norm <= gap.entropy_bound(z.softmax(-1), temperature=tau) * (1 + 1e-9) + 1e-14


def test_above_temperature_one_no_multiple_of_the_policys_entropy_does():
    ratios = []
    for gap_of_logits in (10.0, 20.0, 30.0):
        z = torch.tensor([gap_of_logits, 0.0], dtype=torch.float64)
        norm = gap.softmax_jacobian_norm((z / 2).softmax(-1), temperature=2.0)
        ratios.append(float(norm / gap.entropy_bound(z.softmax(-1), temperature=2.0)))
    assert ratios[1] > 50 * ratios[0]
    assert ratios[2] > 50 * ratios[1]
