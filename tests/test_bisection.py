"""Bisection of many brackets at once."""

import torch

from replicate.bisection import bisect


def test_every_bracket_closes_on_its_own_turning_point():
    wanted = torch.tensor([[0.3, 2.0], [7.25, 1e-9]], dtype=torch.float64)
    low, high = bisect(
        lambda x: x < wanted, torch.zeros_like(wanted), torch.full_like(wanted, 8.0), steps=100
    )
    assert (low <= wanted).all()
    assert (wanted <= high).all()
    assert (high - low <= 2 * torch.finfo(torch.float64).eps * wanted).all()


def test_each_step_halves_and_asks_once_at_the_middle():
    asked = []

    def inside(x):
        asked.append(x.item())
        return x <= 5.0  # true at the turning point itself

    low, high = bisect(inside, torch.tensor([0.0]), torch.tensor([8.0]), steps=3)
    assert asked == [4.0, 6.0, 5.0]
    assert (low.item(), high.item()) == (5.0, 6.0)


def test_a_bracket_without_a_turning_point_closes_on_its_end():
    for answer, end in ((True, 1.0), (False, 0.0)):
        ends = torch.zeros(2), torch.ones(2)
        closed = bisect(lambda x, a=answer: torch.full_like(x, a).bool(), *ends, steps=30)
        assert (torch.stack(closed) - end).abs().max() < 1e-6
