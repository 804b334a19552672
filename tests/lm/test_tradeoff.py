"""Both sides of Theorem 1 with planted errors, entropies by scaling, and the errors of five estimates."""

import math

import numpy as np
import pytest
import torch

from replicate.lm import enumeration, recurrence, relaxed, theorem_one, token_path, tradeoff
from replicate.models.fresh import tiny_model
from replicate.rl import grpo
from replicate.statistics import summaries

V, T = 4, 3
EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(family: str = "olmo2", seed: int = 0, **size):
    g = seeded(seed)
    F, s = recurrence.fresh_start(family, vocab=size.pop("vocab", V), generator=g, **size)
    return F, s, torch.randn(V**T, generator=g, dtype=torch.float64)


def doubling():
    """s' = 2 s + e with tokens +1 and -1 and logits (s, 0): every factor of (23) is a number of one sign."""
    ends = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return recurrence.Recurrence(
        lambda s, e: 2 * s + e, lambda s: torch.cat([s, 0 * s], dim=1), ends, lambda n: 0
    )


def test_discrete_gradients_are_those_of_enumeration_for_each_setting():
    F, s, R = start()
    scales = torch.tensor([[1.0, 1.0, 1.0], [0.2, 3.0, 1.5]], dtype=torch.float64)
    found = theorem_one.discrete_gradients(F, s, R, scales=scales)
    every = enumeration.all_completions(V, T)
    for scale, g in zip(scales, found, strict=True):
        log_probs = recurrence.log_probs_of(F, every, scale=scale)
        assert (enumeration.value_gradient(log_probs, s[0], R) - g).abs().max() < EXACT
    assert (found[0] - found[1]).norm() > 1e-3  # the scales matter


def test_sides_by_step_orders_error_and_both_right_sides():
    F, s, R = start("gpt2")
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    rows = theorem_one.sides_by_step(theorem_one.both_sides(F, s, reward, horizon=T))
    assert [row["t"] for row in rows] == [1, 2]
    lam, cut = (relaxed.relaxed_costates(F, s, reward, horizon=T, cut=c) for c in (False, True))
    for row in rows:
        t = row["t"] - 1
        assert row["error"] == pytest.approx(float((cut[t] - lam[t]).norm()), rel=1e-12)
        assert row["signal"] == pytest.approx(float(lam[t].norm()), rel=1e-6)
        assert 0 < row["error"] < row["sharp"] < row["entropy"]


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


def test_paths_along_a_rollout_are_those_at_its_states():
    F, s, _ = start()
    how = {"tau": 0.7, "noise": relaxed.gumbel(1, T, V, generator=seeded(3))}
    steps = token_path.paths_along(F, s, horizon=T, **how)
    states = relaxed.relaxed_rollout(F, s, horizon=T, **how).states
    assert len(steps) == T - 1
    for t, step in enumerate(steps):
        alone = token_path.paths(F, states[t].detach(), tau=0.7, noise=how["noise"][:, t])
        assert (step.token - alone.token).abs().max() < EXACT
        assert (step.attention - alone.attention).abs().max() < EXACT


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


def test_relative_error_at_the_embeddings_does_not_hang_on_the_final_norms_scale():
    """The final norm's weight divided by a hundred, the head multiplied by it: the same model in other coordinates."""
    g = seeded(8)
    model = tiny_model(vocab=V, generator=g)
    prompt = torch.randint(V, (1, 4), generator=g)
    reward = relaxed.multilinear(torch.randn(V**T, generator=g).double(), vocab=V, horizon=T)

    def relative():
        F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
        lam, cut = (relaxed.relaxed_costates(F, s, reward, horizon=T, cut=c)[0] for c in (False, True))
        at = theorem_one.norms_at_embeddings(model, prompt, torch.cat([cut - lam, lam]))
        return float((cut - lam).norm() / lam.norm()), float(at[0] / at[1])

    state_before, embedded_before = relative()
    with torch.no_grad():
        model.model.norm.weight /= 100
        model.lm_head.weight *= 100
    state_after, embedded_after = relative()
    assert embedded_after == pytest.approx(embedded_before, rel=1e-7)
    assert abs(state_after / state_before - 1) > 0.1


def test_norms_at_the_embeddings_are_slopes_of_the_rollout():
    """|dR/de| from differences of the relaxed reward along the gradient itself."""
    g = seeded(9)
    model = tiny_model(vocab=V, generator=g)
    prompt = torch.randint(V, (1, 3), generator=g)
    reward = relaxed.multilinear(torch.randn(V**T, generator=g).double(), vocab=V, horizon=T)
    F, e = recurrence.transformer(model), model.get_input_embeddings()(prompt).detach().requires_grad_()

    def value(embedded):
        return reward(relaxed.relaxed_rollout(F, recurrence.read_prompt(model, embedded), horizon=T).soft)

    (direction,) = torch.autograd.grad(value(e), e)
    lam = relaxed.relaxed_costates(F, recurrence.prompt_state(model, prompt), reward, horizon=T)[0]
    h = 1e-4 / direction.norm()
    with torch.no_grad():
        slope = (value(e + h * direction) - value(e - h * direction)) / (2e-4)
    found = theorem_one.norms_at_embeddings(model, prompt, torch.cat([lam, -3 * lam]))
    assert found.tolist() == pytest.approx([float(slope), 3 * float(slope)], rel=1e-5)


def test_linear_prediction_has_the_soft_reward_as_its_mean_and_the_slopes_as_differences():
    F, s, R = start()
    reward = relaxed.multilinear(R, vocab=V, horizon=T)
    found = relaxed.linear_prediction(F, s, reward, horizon=T)
    soft = relaxed.relaxed_rollout(F, s, horizon=T).soft.detach()
    assert ((soft[0] * found).sum(1) - reward(soft)).abs().max() < EXACT
    slopes = relaxed.token_slopes(F, s, reward, horizon=T)
    assert (found.diff(dim=1) - slopes.diff(dim=1)).abs().max() < EXACT


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


def test_geometric_mean_covers_as_often_as_it_says():
    assert summaries.geometric_mean([1.0, 100.0])["mean"] == pytest.approx(10.0)
    rng, inside = np.random.default_rng(7), 0
    for _ in range(1000):
        band = summaries.geometric_mean(np.exp(rng.normal(1.0, 2.0, 6)))
        inside += band["low"] < math.e < band["high"]
    assert abs(inside - 950) < 4 * (1000 * 0.95 * 0.05) ** 0.5  # z-values in place of t would cover 890
    for bad in ([1.0], [1.0, 0.0], [1.0, math.inf]):
        with pytest.raises(ValueError, match="values: expected at least 2, positive and finite"):
            summaries.geometric_mean(bad)


def test_quartiles_as_text_keep_whole_numbers_and_infinity():
    assert summaries.quartile_text([2.0, 4.0, 22.0, 50.0, 90.0]) == "22 (4-50)"
    assert summaries.quartile_text([2.0, 2.0, math.inf, math.inf, math.inf]) == "inf (2-inf)"
