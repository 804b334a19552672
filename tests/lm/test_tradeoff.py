"""Bias against variance: the errors of five estimates of one value gradient, and where they cross."""

import math

import pytest
import torch

from fresh_starts import T, V, seeded, start
from replicate.lm import enumeration, recurrence, relaxed, theorem_one, tradeoff
from replicate.rl import grpo


def costs_of(seed: int = 0, rollouts: int = 50):
    """Those of the second of two settings, which differ in reward and scales."""
    F, s, R = start(seed=seed)
    scale = torch.tensor([2.0, 1.0, 0.7], dtype=torch.float64)
    settings = {"scales": torch.stack([0.3 * scale, scale]), "tau": 0.5, "rollouts": rollouts}
    _, costs = tradeoff.estimation_costs(F, s, torch.stack([R.flip(0), R]), generator=seeded(5), **settings)
    every = enumeration.all_completions(V, T)
    log_probs = recurrence.log_probs_of(F, every, scale=scale)
    P = enumeration.probabilities(log_probs, s[0], len(every))
    S = enumeration.scores(log_probs, s[0], torch.ones(every.shape, dtype=torch.float64))
    return costs, F, s, R, scale, P, S


def test_score_function_cost_is_exact_and_agrees_with_simulation():
    costs, _, _, R, _, P, S = costs_of()
    g = (P * R) @ S
    for group in (2, 3, 17, 500):
        exact = enumeration.leave_one_out_mse(P, R, S, group=group) / float(g.square().sum())
        assert costs.score_function(group) == pytest.approx(exact, rel=1e-9)
    group, repeats = 5, 20_000
    drawn = torch.multinomial(P, repeats * group, replacement=True, generator=seeded(6)).view(repeats, group)

    def z(baseline):
        A = grpo.group_advantages(R[drawn], baseline=baseline, scale="none")
        errors = ((A[:, :, None] * S[drawn]).mean(1) - g).square().sum(1) / g.square().sum()
        return float((errors.mean() - costs.score_function(group)) / (errors.std() / repeats**0.5))

    assert abs(z("leave_one_out")) < 4
    assert abs(z("mean")) > 6  # with the sample in its own baseline it is another estimate


def test_costs_of_the_other_estimates():
    costs, F, s, R, scale, P, S = costs_of()
    g = (P * R) @ S
    unit = float(g.square().sum())
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    lam = relaxed.relaxed_costates(F, s, reward, horizon=T, scale=scale)[0][0]
    assert costs.relaxed == pytest.approx(float((lam - g).square().sum()) / unit, rel=1e-9)
    prediction = relaxed.linear_prediction(F, s, reward, horizon=T, scale=scale)
    both = relaxed.combined_estimates(F, s[0], enumeration.all_completions(V, T), R, prediction, scale=scale)
    assert costs.combined == pytest.approx(float(P @ (both - g).square().sum(1)) / unit, rel=1e-9)
    found = costs.errors(8)
    assert set(found) == set(tradeoff.ESTIMATES)
    assert found["control variate"] == pytest.approx(costs.combined / 8)
    # the best weight w of w x score function + (1 - w) x relaxed, by brute force
    w = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    best = (w**2 * found["score function"] + (1 - w) ** 2 * found["relaxed"]).min()
    assert found["weighted mean"] == pytest.approx(float(best), rel=1e-6)
    assert found["weighted mean"] < min(found["score function"], found["relaxed"])


def test_gumbel_bias_does_not_count_its_own_sampling_error():
    rollouts = 300
    costs, F, s, R, scale, P, S = costs_of(rollouts=rollouts)
    g, reward = (P * R) @ S, relaxed.multilinear(R, vocab=V, horizon=T)
    noise = relaxed.gumbel(2 * rollouts, T, V, generator=seeded(5))[rollouts:]
    how = {"horizon": T, "scale": scale, "noise": noise, "tau": 0.5}
    soft = relaxed.relaxed_costates(F, s.expand(rollouts, -1), reward, **how)[0]
    pairs = (soft - g) @ (soft - g).T  # products of different rollouts have the squared bias as their mean
    bias = (pairs.sum() - pairs.diag().sum()) / (rollouts * (rollouts - 1))
    unit = float(g.square().sum())
    assert costs.gumbel[0] == pytest.approx(max(0.0, float(bias)) / unit, rel=1e-9)
    assert costs.gumbel[0] > 0
    assert costs.gumbel[1] == pytest.approx(float(soft.var(0).sum()) / unit, rel=1e-9)
    with pytest.raises(ValueError, match="rollouts: a variance needs at least 2, got 1"):
        costs_of(rollouts=1)


def test_crossings_are_the_first_groups_that_are_good_enough():
    costs = costs_of()[0]
    found = costs.crossings()
    for name, level in (("score function / relaxed", costs.relaxed), ("score function / zero", 1.0)):
        group = int(found[name])
        assert costs.score_function(group) <= level
        assert group == 2 or costs.score_function(group - 1) > level
    group = int(found["control variate / relaxed"])
    assert costs.combined / group <= costs.relaxed
    assert group == 2 or costs.combined / (group - 1) > costs.relaxed


def test_crossing_by_bisection():
    for first in (2, 3, 4, 5, 63, 64, 65, 1000):
        assert tradeoff.crossing(lambda G, first=first: first <= G) == first
    assert tradeoff.crossing(lambda G: False, limit=64) == math.inf


def test_errors_in_other_coordinates_are_those_of_the_vectors_seen_there():
    F, s, R = start()
    view = torch.randn(s.shape[1], 3, generator=seeded(2), dtype=torch.float64)
    how = {"scales": torch.ones(1, T, dtype=torch.float64), "tau": 0.5, "rollouts": 5, "generator": seeded(1)}
    (seen,) = tradeoff.estimation_costs(F, s, R[None], view=view, **how)
    g = theorem_one.discrete_gradients(F, s, R, scales=how["scales"])[0] @ view
    lam = relaxed.relaxed_costates(F, s, relaxed.multilinear(R, vocab=V, horizon=T), horizon=T)[0][0] @ view
    assert seen.relaxed == pytest.approx(float((lam - g).square().sum() / g.square().sum()), rel=1e-9)


def test_gumbel_by_temperature_on_one_state_in_one_dimension():
    """Two tokens with logits (s, 0) and worths (1, 0): costates, bias and variance of each draw by hand."""
    F = recurrence.Recurrence(
        lambda s, e: s, lambda s: torch.cat([s, 0 * s], 1), torch.eye(2, 1).double(), lambda n: 0
    )
    noise, s = relaxed.gumbel(4000, 1, 2, generator=seeded(3)), torch.tensor([[0.4]], dtype=torch.float64)
    worth = torch.tensor([1.0, 0.0], dtype=torch.float64)
    how = {"scale": torch.ones(1).double(), "noise": noise, "taus": (0.3, 2.0), "view": torch.eye(1).double()}
    found = tradeoff.gumbel_by_temperature(F, s, worth, **how)
    pi = torch.sigmoid(s[0, 0])
    for tau, (bias, variance) in zip((0.3, 2.0), found, strict=True):
        p = torch.sigmoid((s[0, 0] + noise[:, 0, 0] - noise[:, 0, 1]) / tau)
        lam, g = p * (1 - p) / tau, pi * (1 - pi)
        assert variance == pytest.approx(float(lam.var() / g**2), rel=1e-9)
        pairs = ((lam - g).sum() ** 2 - (lam - g).square().sum()) / (4000 * 3999)
        assert bias == pytest.approx(float(pairs / g**2), rel=1e-6)
    assert found[0][0] < found[1][0]
    assert found[0][1] > found[1][1]
