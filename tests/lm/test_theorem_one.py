"""Theorem 1: both sides of (23), right sides with a planted error, entropies by scaling."""

import numpy as np
import pytest
import torch

from replicate.lm import enumeration, recurrence, relaxed, theorem_one

V, T = 4, 3
EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(family: str = "olmo2", seed: int = 0):
    """A recurrence, its state, and a reward of each completion."""
    g = seeded(seed)
    if family == "bigram":
        F = recurrence.bigram(vocab=V, hidden=6, generator=g)
        s = F.read(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([1]))
    else:
        F, s = recurrence.fresh_start(family, vocab=V, generator=g)
    return F, s, torch.randn(V**T, generator=g, dtype=torch.float64)


def doubling():
    """s' = 2 s + e with tokens +1 and -1 and logits (s, 0): every factor of (23) is a number of one sign."""
    ends = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return recurrence.Recurrence(
        lambda s, e: 2 * s + e, lambda s: torch.cat([s, 0 * s], dim=1), ends, lambda n: 0
    )


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", ["olmo2", "llama", "gpt2", "gru", "bigram"])
def test_theorem_one_for_the_cut_costate(name, noisy):
    F, s, R = start(name, seed=7)
    noise = relaxed.gumbel(1, T, V, generator=seeded(9)) if noisy else None
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    found = theorem_one.both_sides(F, s, reward, horizon=T, noise=noise, tau=0.7 if noisy else 1.0)
    assert (found.error <= found.sharp * (1 + 1e-9) + 1e-14).all()
    assert (found.sharp <= found.entropy_bound * (1 + 1e-9)).all()
    assert found.error[-1] == found.sharp[-1] == 0
    assert found.error[0] > 1e-6
    # the last step's bound is one product, so a right side with a step left out must fall below some error
    assert found.error[-2] > 1e-3 * found.sharp[-2]


def test_theorem_one_with_an_entropy_of_zero_has_no_gap():
    F, s, R = start()
    scale = torch.full((T,), 1e4, dtype=torch.float64)
    found = theorem_one.both_sides(F, s, relaxed.multilinear(R, vocab=V, horizon=T), horizon=T, scale=scale)
    assert found.error.max() < 1e-12


def test_the_bound_does_not_hold_for_the_costate_that_grpo_sends():
    """A case whose right side is zero although expected GRPO costate and relaxed costate differ."""

    def logits(s):
        first = s[:, 0] ** 2 - 1 + 2 * s[:, 1] ** 3
        return torch.stack([first, torch.zeros_like(first)], 1)

    def advance(s, e):
        return torch.cat([0 * s[:, :1], e], 1)

    F = recurrence.Recurrence(
        advance, logits, torch.tensor([[1.0], [-1.0]], dtype=torch.float64), lambda n: 0
    )
    s = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    R = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    reward = relaxed.multilinear(R, vocab=2, horizon=2)
    found = theorem_one.both_sides(F, s, reward, horizon=2)
    lam = relaxed.relaxed_costates(F, s, reward, horizon=2)[0][0]
    g = enumeration.value_gradient(recurrence.log_probs_of(F, enumeration.all_completions(2, 2)), s[0], R)
    assert found.entropy_bound[0] < 1e-14
    assert (g - lam).norm() > 0.1


def test_right_side_by_hand():
    bound = theorem_one.right_side([2.0, 3.0], [0.5, 0.25], [9.0, 4.0, 8.0])
    assert bound.tolist() == [0.5 * 4 + 2 * (0.25 * 8), 0.25 * 8, 0.0]


def test_right_side_is_attained_in_one_dimension_and_planted_errors_fail_there():
    s = torch.tensor([[0.3]], dtype=torch.float64)
    sides = theorem_one.both_sides(doubling(), s, lambda soft: soft[:, -1, 0], horizon=4)
    wrong = theorem_one.wrong_right_sides(sides)
    error = torch.stack([x.norm() for x in sides.gaps])[:-1]
    assert (error / sides.sharp[:-1] - 1).abs().max() < 1e-12
    for name in ("one factor short", "own step left out"):
        assert (error / wrong[name][:-1]).max() > 1.1, name


def test_identity_block_is_needed_where_a_gap_travels_through_the_cache():
    """Three certain tokens, then one that hesitates: its gap reaches s_1 through the cache, untouched."""
    certain = torch.tensor([200.0, 200.0, 200.0, 1.0, 1.0], dtype=torch.float64)
    g, ratios = seeded(1), []
    for _ in range(4):
        F, s = recurrence.fresh_start("gpt2", vocab=5, generator=g, gain=0.2)
        R = torch.randn(5**5, generator=g, dtype=torch.float64)
        sides = theorem_one.both_sides(
            F, s, relaxed.multilinear(R, vocab=5, horizon=5), horizon=5, scale=certain
        )
        wrong = theorem_one.wrong_right_sides(sides)["identity dropped"]
        ratios.append([float((sides.error / side)[:-1].max()) for side in (sides.sharp, wrong)])
    right, wrong = np.array(ratios).T
    assert right.max() < 1 + 1e-6
    assert right.max() > 0.8  # nearly attained
    assert wrong.max() > 2


def test_gumbel_bound_needs_the_entropy_of_the_sample():
    F, s, g = doubling(), torch.tensor([[3.0]], dtype=torch.float64), seeded(4)
    own, policy = [], []
    for _ in range(60):
        how = {"noise": relaxed.gumbel(1, 2, 2, generator=g), "tau": 0.5}
        sides = theorem_one.both_sides(F, s, lambda soft: soft[:, -1, 0], horizon=2, **how)
        wrong = theorem_one.policy_entropy_side(F, s, sides, **how)
        p = relaxed.soft_token(F.logits(s), 0.5, how["noise"][:, 0], False)
        entropies = [float(torch.special.entr(x).sum()) for x in (F.logits(s).softmax(-1), p)]
        assert float(wrong[0] / sides.entropy_bound[0]) == pytest.approx(
            entropies[0] / entropies[1], rel=1e-6
        )
        own.append(float(sides.error[0] / sides.entropy_bound[0]))
        policy.append(float(sides.error[0] / wrong[0]))
    assert max(own) < 1 + 1e-6
    assert max(policy) > 1.2


def test_discrete_gradients_are_those_of_enumeration_for_each_setting():
    F, s, R = start()
    scales = torch.tensor([[1.0, 1.0, 1.0], [0.2, 3.0, 1.5]], dtype=torch.float64)
    found = theorem_one.discrete_gradients(F, s, R, scales=scales)
    every = enumeration.all_completions(V, T)
    for scale, g in zip(scales, found, strict=True):
        log_probs = recurrence.log_probs_of(F, every, scale=scale)
        assert (enumeration.value_gradient(log_probs, s[0], R) - g).abs().max() < EXACT
    assert (found[0] - found[1]).norm() > 1e-3  # the scales matter


def test_errors_over_scales_are_those_of_single_rollouts():
    F, s, R = start()
    scales = torch.tensor([[1.0, 1.0, 1.0], [0.3, 4.0, 2.0]], dtype=torch.float64)
    found = theorem_one.errors_over_scales(F, s, R, scales=scales, sent=True)
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    for i, scale in enumerate(scales):
        lam, cut = (
            relaxed.relaxed_costates(F, s, reward, horizon=T, scale=scale, cut=c)[0][0] for c in (False, True)
        )
        g = theorem_one.discrete_gradients(F, s, R, scales=scale[None])[0]
        assert found["error"][i] == pytest.approx(float((cut - lam).norm()), rel=1e-9)
        assert found["relative"][i] == pytest.approx(float((cut - lam).norm() / lam.norm()), rel=1e-9)
        assert found["sent"][i] == pytest.approx(float((g - lam).norm()), rel=1e-9)
        assert found["relative sent"][i] == pytest.approx(float((g - lam).norm() / lam.norm()), rel=1e-9)
    assert "sent" not in theorem_one.errors_over_scales(F, s, R, scales=scales)
    first = torch.eye(s.shape[1], dtype=torch.float64)[:, :3]
    seen = theorem_one.errors_over_scales(F, s, R, scales=scales[:1], view=first)
    lam = relaxed.relaxed_costates(F, s, reward, horizon=T)[0][0, :3]
    assert seen["signal"][0] == pytest.approx(float(lam.norm()), rel=1e-9)


@pytest.mark.parametrize("family", ["olmo2", "gru"])
def test_scales_give_every_token_the_entropy_asked_for(family):
    F, s, _ = start(family)
    wished = torch.tensor([[0.01, 0.5, 1.3], [1.38, 0.2, 0.01]], dtype=torch.float64)
    scales = theorem_one.scales_for_entropies(F, s, wished)
    for scale, entropies in zip(scales, wished, strict=True):
        run = relaxed.relaxed_rollout(F, s, horizon=T, scale=scale)
        assert (run.entropy[0] - entropies).abs().max() < 1e-9
        assert (relaxed.relaxed_rollout(F, s, horizon=T).entropy[0] - entropies).abs().max() > 0.05


def test_entropies_out_of_reach_are_named():
    F, s, _ = start()
    with pytest.raises(ValueError, match=r"entropies: expected between 0 and 1\.386, got 0\.5 to 1\.4"):
        theorem_one.scales_for_entropies(F, s, torch.tensor([[0.5, 1.4, 0.5]], dtype=torch.float64))
    tie = recurrence.Recurrence(lambda s, e: s, lambda s: 0 * s, torch.eye(2).double(), lambda n: 0)
    with pytest.raises(ValueError, match="entropies: expected ones that some scale of the logits reaches"):
        theorem_one.scales_for_entropies(tie, torch.ones(1, 2).double(), torch.tensor([[0.1]]).double())
