"""Tasks on which the mean costate is the slope of the value, and on which it is not."""

from itertools import pairwise

import pytest
import torch
from scipy import integrate, stats

from replicate.statistics.agreement import worst_z_bound, z_test
from replicate.theory import adjoint
from replicate.theory.interchange import HeavyTail, Threshold, Undominated
from replicate.theory.rollout import draw_noise, sampled_return


def at(s: float, n: int = 1) -> torch.Tensor:
    return torch.full((n, 1), s, dtype=torch.float64)


def law(task) -> stats.rv_continuous:
    return {Threshold: stats.norm, Undominated: stats.uniform, HeavyTail: stats.cauchy}[type(task)]


def value(task, s: float) -> float:
    """E[r] by adaptive quadrature over the noise, in pieces."""
    r = lambda x: sampled_return(task, at(s), torch.full((1, 1, 1), x, dtype=torch.float64), gamma=1.0).item()  # noqa: E731
    density = law(task).pdf
    pieces = {
        Threshold: [-9.0, -s - 0.5, -s, -s + 0.5, 9.0],
        Undominated: [1e-12, s**2, 10 * s**2, 1.0],
    }[type(task)]
    return sum(integrate.quad(lambda x: r(x) * density(x), a, b, limit=200)[0] for a, b in pairwise(pieces))


@pytest.mark.parametrize(
    "task",
    [Threshold(width=0), Threshold(width=0.3, noise_std=1.5), Undominated()],
    ids=["jump", "smooth", "bound"],
)
def test_slopes_are_those_of_integrated_values(task):
    if isinstance(task, Threshold) and task.noise_std != 1:
        task = Threshold(width=task.width / task.noise_std)  # quadrature is written for standard noise
    s, h = 0.4, 1e-3
    slope = (value(task, s + h) - value(task, s - h)) / (2 * h)
    assert task.slope(at(s)).item() == pytest.approx(slope, rel=1e-5)


def test_the_slope_scales_with_noise_and_width():
    s = at(0.7)
    both = Threshold(width=0.8, noise_std=0.6)
    assert both.slope(s).item() == pytest.approx(stats.norm.pdf(0.7), rel=1e-12)


def test_at_a_jump_every_costate_is_zero_and_the_score_function_sees_it():
    n, task = 20_000, Threshold(width=0)
    xi, _ = draw_noise(task, n, 1, generator=torch.Generator().manual_seed(0))
    assert adjoint.costates(task, at(0.5, n), xi, gamma=1.0).abs().max() == 0
    score = adjoint.score_costates(task, at(0.5, n), xi, gamma=1.0)[:, 0]
    assert z_test(score, task.slope(at(0.5)[0])).worst < worst_z_bound(1)


def test_a_smoothed_jump_keeps_the_promise():
    n, task = 40_000, Threshold(width=0.2)
    xi, _ = draw_noise(task, n, 1, generator=torch.Generator().manual_seed(0))
    lam = adjoint.costates(task, at(0.5, n), xi, gamma=1.0)[:, 0]
    assert z_test(lam, task.slope(at(0.5)[0])).worst < worst_z_bound(1)


def test_without_a_bound_every_costate_at_zero_is_zero():
    task, a = Undominated(), torch.logspace(-8, 0, 50, dtype=torch.float64)[:, None, None]
    assert adjoint.costates(task, at(0.0, 50), a, gamma=1.0).abs().max() == 0
    assert task.slope(at(0.0)).item() == 1
    # At a = s^2 the slope is 1 / (4 a): what a bound would have to exceed.
    s = a[:, 0].sqrt()
    lam = torch.cat(
        [adjoint.costates(task, x[None], y[None], gamma=1.0)[:, 0] for x, y in zip(s, a, strict=True)]
    )
    torch.testing.assert_close(lam, 1 / (4 * a[:, 0]))


def test_a_cauchy_law_has_the_characteristic_function_for_value():
    task = HeavyTail()
    n = 200_000
    a = torch.tan(
        torch.pi
        * (torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5)
    )
    G = sampled_return(task, at(0.7, n), a, gamma=1.0)
    assert z_test(G[:, None], torch.exp(-at(0.7)[0])).worst < worst_z_bound(1)
    assert task.slope(at(-0.7)).item() == pytest.approx(torch.exp(torch.tensor(-0.7)).item(), rel=1e-6)
    torch.testing.assert_close(
        adjoint.costates(task, at(0.7, n), a, gamma=1.0)[:, 0, 0], -a[:, 0, 0] * torch.sin(0.7 * a[:, 0, 0])
    )


def test_a_negative_width_is_named():
    with pytest.raises(ValueError, match="width: expected a number >= 0, got -1"):
        Threshold(width=-1)
