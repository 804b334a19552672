"""A step of fixed length gains its first order, up to an error that shrinks with the step."""

import pytest
import torch

from replicate.impact import first_order
from replicate.impact.forecast import objective_gradient
from replicate.models.fresh import tiny_olmo2
from replicate.models.precision import full_precision
from replicate.rl.prompts import Prompts


@pytest.fixture(autouse=True)
def _full_precision():
    with full_precision():
        yield


@pytest.fixture
def model():
    made = tiny_olmo2(
        layers=1, hidden=8, heads=2, context=16, vocab=9, generator=torch.Generator().manual_seed(0)
    ).double()
    return made.eval()


def prompts():
    rng = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(1, 9, (6, 5), generator=rng), torch.randint(1, 9, (6,), generator=rng)
    return Prompts(tuple("abcdef"), tokens, labels, torch.arange(9), 9)


def directions(model, count=3):
    rng = torch.Generator().manual_seed(2)
    exact = objective_gradient(model, prompts())
    return [
        {n: g + 0.01 * torch.randn(g.shape, generator=rng, dtype=g.dtype) for n, g in exact.items()}
        for _ in range(count)
    ]


def test_the_gap_shrinks_in_proportion_to_the_step_and_a_turned_direction_is_seen(model):
    gaps = [first_order.worst_gaps(model, prompts(), directions(model), eta=eta) for eta in (1e-2, 1e-3)]
    assert gaps[0]["right"] / gaps[1]["right"] == pytest.approx(10, rel=0.3)
    assert gaps[1]["right"] < 0.02
    assert all(gap["turned"] > 1.8 for gap in gaps)


def test_the_model_is_left_as_it_was(model):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first_order.gain_of_step(model, prompts(), directions(model, 1)[0], eta=0.1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_direction_that_is_none_is_refused(model):
    nothing = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match="direction"):
        first_order.gain_of_step(model, prompts(), nothing, eta=0.1)
