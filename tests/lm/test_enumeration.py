"""What is exact about averages over completions: rewards that never look ahead, expected costates, squared errors."""

from itertools import product

import numpy as np
import pytest
import torch

from replicate.lm import enumeration, recurrence
from replicate.models.fresh import tiny_model

EXACT = 1e-10
V, T = 3, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_token_rewards_depend_on_the_prefix_and_on_all_of_it():
    every = enumeration.all_completions(V, T)
    r = enumeration.token_rewards(every, vocab=V, generator=seeded(0))
    assert r.shape == every.shape
    for a, b in product(range(len(every)), repeat=2):
        for t in range(T):
            same_prefix = bool((every[a, : t + 1] == every[b, : t + 1]).all())
            assert bool(r[a, t] == r[b, t]) == same_prefix
    again = enumeration.token_rewards(every.flip(0), vocab=V, generator=seeded(0))
    assert torch.equal(again.flip(0), r)  # the rows' order does not matter


def test_token_rewards_refuse_foreign_tokens_and_long_horizons():
    with pytest.raises(ValueError, match=r"completions: expected token ids in 0 to 1, got 0 to 2"):
        enumeration.token_rewards(enumeration.all_completions(3, 2), vocab=2, generator=seeded(0))
    with pytest.raises(ValueError, match=r"completions: .*got -1 to 0"):
        enumeration.token_rewards(torch.tensor([[0, -1]]), vocab=2, generator=seeded(0))
    with pytest.raises(ValueError, match=r"vocab, horizon: .*got 100\^9"):
        enumeration.token_rewards(torch.zeros(1, 9, dtype=torch.long), vocab=100, generator=seeded(0))


@pytest.mark.parametrize("flat", [True, False])
def test_expected_costate_is_the_slope_of_the_value(flat):
    """Against central differences of V(s), for a flat state (the cache) and for embeddings [length, d]."""
    model = tiny_model("olmo2", vocab=V, generator=seeded(1))
    every = enumeration.all_completions(V, T)
    after = recurrence.log_probs_of(recurrence.transformer(model), every)
    words = torch.tensor([[0, 2, 1]])
    if flat:
        log_probs, state = after, recurrence.prompt_state(model, words)[0]
    else:
        state = model.get_input_embeddings()(words)[0].detach()
        log_probs = lambda e: after(recurrence.read_prompt(model, e))  # noqa: E731
    gamma = 0.8
    togo = enumeration.returns_to_go(
        enumeration.token_rewards(every, vocab=V, generator=seeded(2)), gamma=gamma
    )
    weights = gamma ** torch.arange(T, dtype=torch.float64) * togo
    costate = enumeration.expected_costate(log_probs, state, weights)
    assert costate.shape == state.shape
    u, h = torch.randn(state.shape, generator=seeded(3), dtype=torch.float64), 1e-4
    up, down = (enumeration.value(log_probs, state + sign * h * u, togo[:, 0]) for sign in (1, -1))
    slope = (up - down) / (2 * h)
    assert abs(slope - (costate * u).sum()) < 1e-6
    wrong = enumeration.expected_costate(log_probs, state, togo)  # the discount of step t left out
    assert abs(slope - (wrong * u).sum()) > 1e-3


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_mean_square_error_is_that_of_all_possible_samples(samples, biased):
    """Mean and variance of |error|^2 against a sum over all N^n samples."""
    rng = seeded(4)
    estimates = torch.randn(5, 3, generator=rng, dtype=torch.float64) ** 3  # skewed
    probs = torch.rand(5, generator=rng, dtype=torch.float64)
    probs /= probs.sum()
    target = probs @ estimates + (torch.tensor([0.5, -1.0, 2.0]).double() if biased else 0.0)
    members = enumeration.all_completions(5, samples)
    weight = probs[members].prod(1)
    square = (estimates[members].mean(1) - target).square().sum(1)
    mean, variance = enumeration.mean_square_error(estimates, probs, target, samples=samples)
    assert abs(mean - float(weight @ square)) < EXACT
    assert abs(variance - float(weight @ (square - weight @ square) ** 2)) < EXACT * variance
    assert variance > 1e-3


def test_averages_meet_the_exact_mean_square_error_and_scaled_ones_do_not():
    rng = seeded(5)
    estimates = torch.randn(9, 4, generator=rng, dtype=torch.float64)
    probs = torch.tensor([1.0, 2, 3, 4, 5, 4, 3, 2, 1]).double() / 25
    drawn = torch.multinomial(probs, 2**17, replacement=True, generator=rng)
    target, sizes = probs @ estimates, [16, 1024]
    found = enumeration.averages(estimates[drawn], estimates, probs, target, sizes)
    assert [len(e) for e in found.errors] == [2**13, 2**7]
    assert max(map(abs, found.z)) < 4
    slope = np.log(found.errors[0]).mean() - np.log(found.errors[1]).mean()
    assert slope == pytest.approx(np.log(64) / 2, abs=0.2)  # the square root of 1024 / 16
    assert [row["n"] for row in found.rows] == [16] * 2**13 + [1024] * 2**7
    assert found.rows[0]["predicted"] ** 2 == pytest.approx(found.mean_square[0])
    shrunken = enumeration.averages(0.75 * estimates[drawn], estimates, probs, target, sizes)
    assert abs(shrunken.z[1]) > 20
    with pytest.raises(ValueError, match=r"sizes: expected at most 65536, half of the samples, got 65537"):
        enumeration.averages(estimates[drawn], estimates, probs, target, [65537])


def test_mean_square_error_refuses_an_empty_sample():
    with pytest.raises(ValueError, match=r"samples: expected at least 1, got 0"):
        enumeration.mean_square_error(
            torch.zeros(2, 1).double(), torch.ones(2).double() / 2, torch.zeros(1).double(), samples=0
        )
