"""Matched straight-through: values of the sampled rollout, a backward pass through the softmax, Theorem 1 along it."""

import pytest
import torch

from fresh_starts import T, V, seeded, start
from replicate.lm import enumeration, recurrence, relaxed, straight_through, theorem_one


def coin(m):
    """Two tokens at +-1, state (u, v), logits (u^2 - 1 + 2 m(v), 0), new state (0, e)."""
    return recurrence.Recurrence(
        lambda s, e: torch.cat([0 * s[:, :1], e], 1),
        lambda s: torch.cat([s[:, :1] ** 2 - 1 + 2 * m(s[:, 1:]), 0 * s[:, :1]], 1),
        torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
        lambda n: 0,
    )


def polynomial(v):
    return 105 / 8 * (v**3 / 3 - 2 * v**5 / 5 + v**7 / 7)


@pytest.mark.parametrize(
    ("m", "costate", "right"), [(polynomial, 0.0, 0.0), (lambda v: v**3, 0.7254, 0.7254)]
)
def test_the_two_examples_by_hand(m, costate, right):
    """v^3: at v = +-1 the second step has the slope 6 s'(+-2 - 1), and the first token moves v at the rate 1 in u."""
    F, s = coin(m), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    reward = relaxed.multilinear(torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), vocab=2, horizon=2)
    found = straight_through.expected_costate(F, s, reward, horizon=2)
    assert found.tolist() == pytest.approx([costate, 0.0], abs=1e-4)
    slopes = [6 * float(torch.sigmoid(x) * torch.sigmoid(-x)) for x in torch.tensor([1.0, -3.0]).double()]
    if costate:
        assert float(found[0]) == pytest.approx(sum(slopes) / 2, rel=1e-12)  # dv/dz = 1/2, dz/du = 2
    sides = [straight_through.matched_sides(F, s, o, reward) for o in enumeration.all_completions(2, 2)]
    P = enumeration.probabilities(recurrence.log_probs_of(F, enumeration.all_completions(2, 2)), s[0], 4)
    assert float(P @ torch.stack([x.sharp[0] for x in sides])) == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("family", ["olmo2", "gru"])
def test_the_bound_and_the_recursion_along_a_completion(family):
    F, s, R = start(family)
    reward, o = relaxed.multilinear(R, vocab=V, horizon=T), torch.tensor([3, 0, 2])
    scale = torch.tensor([1.5, 0.7, 1.0], dtype=torch.float64)
    found = straight_through.matched_sides(F, s, o, reward, scale=scale)
    assert (found.error <= found.sharp * (1 + 1e-9) + 1e-14).all()
    assert (found.sharp <= found.entropy_bound * (1 + 1e-9)).all()
    assert found.error[0] > 1e-3
    full = straight_through.matched_costates(F, s, o[None], reward, scale=scale)
    steps = straight_through.matched_paths(F, s, o, scale=scale)
    for t, step in enumerate(steps):
        later, lam = found.gaps[t + 1][0], full[t + 1][0]
        back = step.attention.T @ later[step.kept :] - step.token.T @ lam[step.kept :]
        back[: step.kept] += later[: step.kept]
        assert (found.gaps[t][0] - back).abs().max() < 1e-10


def test_credits_of_own_rewards_align_and_returns_do_not():
    """A.9's step: enumerated scores weighted by each token's own reward are the cut costates' mean."""
    F, s, _ = start(seed=3)
    every = enumeration.all_completions(V, T)
    r = torch.randn(T, V, generator=seeded(4), dtype=torch.float64)[torch.arange(T), every]
    log_probs = recurrence.log_probs_of(F, every)
    reward = relaxed.multilinear(r.sum(1), vocab=V, horizon=T)
    cut = straight_through.expected_costate(F, s, reward, horizon=T, cut=True)
    own = enumeration.expected_costate(log_probs, s[0], r)
    returns = enumeration.expected_costate(log_probs, s[0], enumeration.returns_to_go(r))
    assert (own - cut).norm() < 1e-12 * cut.norm()
    assert (returns - cut).norm() > 1e-2 * cut.norm()
    assert (straight_through.expected_costate(F, s, reward, horizon=T) - cut).norm() > 1e-2 * cut.norm()


def test_one_token_is_differentiated_exactly():
    """Without a token in between the mean of the straight-through costate is the value gradient."""
    F, s, _ = start(seed=5)
    R = torch.randn(V, generator=seeded(6), dtype=torch.float64)
    found = straight_through.expected_costate(F, s, relaxed.multilinear(R, vocab=V, horizon=1), horizon=1)
    g = theorem_one.discrete_gradients(F, s, R, scales=torch.ones(1, 1).double())[0]
    assert (found - g).abs().max() < 1e-12


def test_completions_that_cannot_be_fed_are_refused():
    F, s, R = start()
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    with pytest.raises(ValueError, match="completions: expected token ids in 0 to 3, got 0 to 4"):
        straight_through.matched_costates(F, s, torch.tensor([[0, 4, 1]]), reward)
