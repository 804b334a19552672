"""Sampled costates against slopes of the value, both by forward passes; what an answer behind one token costs."""

import math

import pytest
import torch

from replicate.lm import blockwise, enumeration, recurrence, relaxed, sampling, theorem_one

V, T = 4, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def begun():
    return blockwise.fresh_prompt(vocab=V, generator=seeded(1))


def test_slopes_of_the_value_are_the_enumerated_gradient(begun):
    R = torch.randn(V**T, generator=seeded(2), dtype=torch.float64)
    u = torch.randn(3, begun.view.shape[1], generator=seeded(3), dtype=torch.float64)
    g = (
        theorem_one.discrete_gradients(begun.F, begun.state, R, scales=torch.ones(1, T).double())[0]
        @ begun.view
    )
    assert (sampling.value_slopes(begun, R, u, horizon=T) - u @ g).abs().max() < 1e-6 * (u @ g).abs().max()


def test_sampled_costates_have_the_enumerated_mean_and_spread(begun):
    R, n = torch.randn(V**T, generator=seeded(2), dtype=torch.float64), 4000
    found = sampling.sampled_costates(begun, R, horizon=T, samples=n, rng=seeded(4))
    every = enumeration.all_completions(V, T)
    log_probs = recurrence.log_probs_of(begun.F, every)
    P = enumeration.probabilities(log_probs, begun.state[0], len(every))
    S = enumeration.scores(log_probs, begun.state[0], R[:, None].expand(-1, T)) @ begun.view
    z = (found.mean(0) - P @ S) / (found.std(0) / n**0.5)
    assert z.abs().max() < 5
    assert float(found.var(0).sum() / (P @ (S - P @ S).square()).sum()) == pytest.approx(1, abs=0.15)
    wrong = sampling.sampled_costates(begun, R.flip(0), horizon=T, samples=n, rng=seeded(4)).mean(0)
    assert ((wrong - P @ S) / (found.std(0) / n**0.5)).abs().max() > 8


def test_costs_of_an_answer_behind_one_token(begun, monkeypatch):
    """Bias and variance from enumeration of token and answer, the answer then averaged out."""
    y = 2
    found = sampling.answer_costs(begun, y)
    every = enumeration.all_completions(V, 2)
    log_probs = recurrence.log_probs_of(begun.F, every)
    P = enumeration.probabilities(log_probs, begun.state[0], len(every))
    hit = (every[:, 1] == y).double()
    J = float(P @ hit)
    first, second = (
        enumeration.scores(log_probs, begun.state[0], w.double().expand(len(every), -1))
        for w in (torch.tensor([1, 0]), torch.tensor([0, 1]))
    )
    pi = P.view(V, V).sum(1)
    mass = P.view(V, V)[:, y] / pi
    score = first.view(V, V, -1)[:, 0]
    answers = second.view(V, V, -1)[:, y]
    each = ((mass - J)[:, None] * score + mass[:, None] * answers) @ begun.view
    g = pi @ each
    assert found["signal"] == pytest.approx(float(g.norm()), rel=1e-9)
    assert found["variance"] == pytest.approx(
        float(pi @ (each - g).square().sum(1) / g.square().sum()), rel=1e-9
    )
    lam = (
        relaxed.relaxed_costates(begun.F, begun.state, lambda soft: soft[:, -1, y], horizon=2)[0] @ begun.view
    )
    assert found["bias"] == pytest.approx(float((lam - g).square().sum() / g.square().sum()), rel=1e-9)
    assert found["crossing"] == pytest.approx(found["variance"] / found["bias"])
    monkeypatch.setattr(sampling, "ENUMERATED", 10)
    assert all(math.isnan(x) for x in sampling.answer_costs(begun, y).values())
