"""Each law written by hand is one law: its density, slope, jumps and characteristic function fit together."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Beta, Exponential, Uniform

from replicate.theory import estimators
from replicate.theory import noise_laws as laws

SCALE = 0.6
ALL = {**laws.smooth(SCALE), **laws.kinked(SCALE), **laws.jumping(SCALE)}


@pytest.fixture(params=ALL)
def law(request):
    return ALL[request.param]


def test_a_density_of_the_stated_spread(law):
    mean = law.integral(lambda x: x * law.density(x))
    spread = law.integral(lambda x: (x - mean) ** 2 * law.density(x)) ** 0.5
    assert law.integral(law.density) == pytest.approx(1, abs=1e-12)
    assert spread == pytest.approx(SCALE, rel=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.7, -4.0])
def test_the_characteristic_function_is_the_density_s_transform(law, t):
    real = law.integral(lambda x: np.cos(t * x) * law.density(x))
    imaginary = law.integral(lambda x: np.sin(t * x) * law.density(x))
    assert complex(law.characteristic(np.asarray(t))) == pytest.approx(real + 1j * imaginary, abs=1e-10)


def test_slope_and_jumps_together_are_the_density_s_derivative(law):
    """From the lower end to x, slopes and jumps add up to p(x); either left out is seen."""
    for x in (-0.35, 0.05, 0.9):
        if law.low < x < law.high:
            below = sum(height for place, height in law.jumps if place < x)
            assert law.integral(law.slope, high=x) + below == pytest.approx(float(law.density(x)), abs=1e-10)
    assert law.integral(law.slope) + sum(height for _, height in law.jumps) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", [*laws.smooth(1), "Laplace"])
def test_the_laws_that_are_sampled_are_the_same(name):
    """Against the density and the score by autograd of the law that ``estimators`` draws from."""
    sampled, law = estimators.shift_families(SCALE)[name], ALL[name]
    x = np.array([-1.9, -0.4, 0.2, 1.3])
    xi = torch.from_numpy(x)[:, None]
    assert law.density(x) == pytest.approx(sampled.log_prob(xi).exp()[:, 0].numpy(), rel=1e-12)
    assert law.slope(x) / law.density(x) == pytest.approx(
        estimators.score(sampled, xi)[:, 0].numpy(), rel=1e-11
    )


def test_bounded_and_one_sided_laws_are_the_textbook_s():
    end = SCALE * math.sqrt(3)
    x = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert ALL["uniform"].density(x.numpy()) == pytest.approx(Uniform(-end, end).log_prob(x).exp().numpy())
    assert ALL["exponential"].density(x.numpy()) == pytest.approx(
        Exponential(1 / SCALE).log_prob(x).exp().numpy()
    )
    for k, name in ((1, "Beta(2, 2)"), (2, "Beta(3, 3)")):
        law = ALL[name]
        expected = Beta(k + 1.0, k + 1.0).log_prob((x + law.high) / (2 * law.high)).exp() / (2 * law.high)
        assert law.density(x.numpy()) == pytest.approx(expected.numpy(), rel=1e-6)


def test_two_halves_have_their_weights():
    law = laws.halves(0.8, SCALE)
    assert law.integral(law.density, low=0.0) == pytest.approx(0.8, abs=1e-12)
    just = [float(law.density(np.asarray(x))) for x in (-1e-12, 1e-12)]
    assert law.jumps == ((0.0, pytest.approx(just[1] - just[0], rel=1e-9)),)


def test_far_out_nothing_overflows(law):
    with np.errstate(all="raise", under="ignore"):
        for x in (-800.0, 800.0):
            if law.low < x < law.high:
                assert 0 <= float(law.density(np.asarray(x))) < 1e-12
                assert abs(float(law.slope(np.asarray(x)))) < 1e-12
