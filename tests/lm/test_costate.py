"""Def. 2, recursion (15), audits A3, A4 and A8, and what baselines do to the expected costate."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from replicate.lm import costate, enumeration, recurrence
from replicate.models.fresh import tiny_model
from replicate.models.hooks import FINAL
from replicate.models.precision import full_precision
from replicate.rl.grpo import group_advantages

FAMILIES = ("olmo2", "llama", "gpt2")
V, T = 5, 3
EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(family: str, seed: int = 0, batch: int = 6):
    g = seeded(seed)
    model = tiny_model(family, vocab=V, generator=g)
    prompt = torch.randint(V, (1, 4), generator=g)
    tokens = torch.randint(V, (batch, T), generator=g)
    weights = torch.randn(batch, T, generator=g, dtype=torch.float64)
    return model, prompt, tokens, weights


def any_recurrence(name: str, seed: int = 0):
    g = seeded(seed)
    if name in FAMILIES:
        model = tiny_model(name, vocab=V, generator=g)
        return recurrence.transformer(model), recurrence.prompt_state(
            model, torch.randint(V, (1, 4), generator=g)
        )
    F = getattr(recurrence, name)(vocab=V, hidden=6, generator=g)
    return F, F.read(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([1]))


class Flops(TorchDispatchMode):
    """Counts floating-point operations of matrix products, forwards and backwards."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def gap_between(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_models_are_not_rounded_to_float32_inside(family):
    model, prompt, _, _ = case(family)
    e = model.get_input_embeddings()(prompt).detach()
    u = torch.randn(e.shape, generator=seeded(1), dtype=torch.float64)

    def f(x):
        with full_precision():
            return model(inputs_embeds=x).logits.square().sum()

    leaf = e.clone().requires_grad_()
    slope = (torch.autograd.grad(f(leaf), leaf)[0] * u).sum()
    h = 1e-3
    with torch.no_grad():
        near, far = f(e + h * u) - f(e - h * u), f(e + 2 * h * u) - f(e - 2 * h * u)
    torch.testing.assert_close(slope, (8 * near - far) / (12 * h), rtol=1e-7, atol=1e-8)


def test_products_that_would_have_met_in_float32_are_taken_in_float64():
    """Rotary angles are such a product in some versions of transformers."""
    wide, narrow = torch.full((2, 2), 1 / 3, dtype=torch.float64), torch.eye(2)
    with full_precision():
        assert torch.equal(wide.float() @ narrow, wide)
        assert torch.equal(torch.matmul(narrow, wide), wide)
        assert (narrow @ narrow).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_give_the_same_log_probabilities_as_one_pass(family):
    model, prompt, tokens, _ = case(family)
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
    stepwise = recurrence.unroll(F, s.expand(len(tokens), -1), tokens).logp
    with full_precision(), torch.no_grad():
        logits = model(input_ids=torch.cat([prompt.expand(len(tokens), -1), tokens[:, :-1]], 1)).logits
    at_once = logits[:, 3:].log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    assert (stepwise - at_once).abs().max() < EXACT


def test_a_scale_is_an_inverse_temperature_of_its_own_step():
    model, prompt, tokens, _ = case("olmo2")
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    found = recurrence.unroll(F, s.expand(len(tokens), -1), tokens, scale=scale).logp
    with full_precision(), torch.no_grad():
        logits = model(input_ids=torch.cat([prompt.expand(len(tokens), -1), tokens[:, :-1]], 1)).logits
    wanted = (logits[:, 3:] * scale[:, None]).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    assert (found - wanted).abs().max() < EXACT


@pytest.mark.parametrize("name", [*FAMILIES, "gru", "bigram"])
def test_recursion_15_equals_autograd_on_the_whole_state(name):
    F, s = any_recurrence(name)
    _, _, tokens, weights = case("olmo2")
    s = s.expand(len(tokens), -1)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    full = costate.costates(F, s, tokens, weights, scale=scale)
    assert gap_between(full, costate.costates_by_recursion(F, s, tokens, weights, scale=scale)) < EXACT
    assert full[0].norm() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recursion_on_the_newest_column_alone_is_rejected(name):
    F, s = any_recurrence(name)
    _, _, tokens, weights = case("olmo2")
    s = s.expand(len(tokens), -1)
    full = costate.costates(F, s, tokens, weights)
    newest = costate.costates_by_recursion(F, s, tokens, weights, newest_only=True)
    column = full[1].shape[1] - full[0].shape[1]
    part = [slice(F.kept(x.shape[1]) - column, None) for x in full]
    wrong = [(x - y)[:, p].norm() / x[:, p].norm() for x, y, p in zip(full, newest, part, strict=True)]
    assert wrong[0] > 1e-3  # two or more tokens later are lost
    assert wrong[-1] < EXACT  # with one token left there is nothing to lose


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_reaches_higher_layers_only(family):
    """A3: dh_k^l'/dh_t^l = 0 unless l' > l and k >= t, or the same state."""
    model, prompt, _, _ = case(family)
    norms = costate.layer_influence(model, prompt[0])
    L, P = norms.shape[:2]
    for low, t, high, k in np.ndindex(L, P, L, P):
        reaches = (high > low and k >= t and (k == t or low < L - 2)) or (high == low and k == t)
        assert (norms[low, t, high, k] > 0) == reaches, (low, t, high, k)
    identity = norms[1, :, 1].diagonal()
    torch.testing.assert_close(identity, torch.full_like(identity, model.config.hidden_size**0.5))


def test_influence_agrees_with_finite_differences():
    model, prompt, _, _ = case("olmo2")
    norms = costate.layer_influence(model, prompt[0])
    e = model.get_input_embeddings()(prompt).detach()
    h, columns = 1e-5, []
    for i in range(e.shape[2]):
        step = torch.zeros_like(e)
        step[0, 1, i] = h
        with torch.no_grad(), full_precision():
            out = [model.base_model(inputs_embeds=e + s * step).last_hidden_state[0, 3] for s in (1, -1)]
        columns.append((out[0] - out[1]) / (2 * h))
    assert abs(torch.stack(columns).norm() - norms[0, 1, -1, 3]) < 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_probed_influence_has_the_exact_zeros_and_the_exact_norms_in_the_mean(family):
    """chi^2: with 2000 probes of 16 entries no norm is off by a tenth."""
    model, prompt, _, _ = case(family)
    exact = costate.layer_influence(model, prompt[0])
    probed = costate.probed_influence(model, prompt[0], probes=2000, generator=seeded(1))
    assert torch.equal(probed > 0, exact > 0)
    torch.testing.assert_close(probed, exact, rtol=0.1, atol=1e-12)
    few = costate.probed_influence(model, prompt[0], probes=1, generator=seeded(1))
    assert torch.equal(few > 0, exact > 0)
    assert (few - exact).abs().max() > 0.1 * exact.max()  # one probe is not the norm


def test_influence_of_some_layers_is_that_part_of_all():
    model, prompt, _, _ = case("olmo2")
    whole, some = costate.layer_influence(model, prompt[0]), [0, 2, FINAL]
    torch.testing.assert_close(
        costate.layer_influence(model, prompt[0], layers=some), whole[some][:, :, some], rtol=EXACT, atol=0
    )
    probed = costate.probed_influence(model, prompt[0], layers=some, probes=3, generator=seeded(1))
    assert torch.equal(probed > 0, (whole > 0)[some][:, :, some])


@pytest.mark.parametrize("family", FAMILIES)
def test_credit_matrix_sums_to_the_costate_and_its_diagonal_is_what_15_keeps(family):
    model, prompt, tokens, weights = case(family)
    prompts = prompt.expand(len(tokens), -1)
    every = costate.layer_costates(model, prompts, tokens, weights, vocab=V)
    assert every.shape == (
        len(costate.layer_numbers(model)),
        len(tokens),
        4 + T - 1,
        model.config.hidden_size,
    )
    depth = model.config.num_hidden_layers
    for layer in (*range(depth + 1), FINAL):
        credit = costate.credit_matrix(model, prompts, tokens, weights, vocab=V, layer=layer)
        assert (credit.sum(1) - every[layer][:, 3:]).abs().max() < EXACT
        upper = torch.triu(credit.norm(dim=-1).mean(0), 1)
        lower = torch.tril(credit.norm(dim=-1).mean(0), -1)
        assert upper.max() == 0  # later states do not reach earlier tokens
        assert (lower.max() > 1e-3) == (layer not in (depth, FINAL))


@pytest.mark.parametrize("family", FAMILIES)
def test_final_state_costate_in_closed_form(family):
    """At the final state lambda^_t = A_t W^T (onehot(o_t) - pi_t), nothing else."""
    model, prompt, tokens, weights = case(family)
    prompts = prompt.expand(len(tokens), -1)
    (found,) = costate.layer_costates(model, prompts, tokens, weights, vocab=V, layers=[FINAL])
    with full_precision(), torch.no_grad():
        logits = model(input_ids=torch.cat([prompts, tokens[:, :-1]], 1)).logits[:, 3:]
    onehot = torch.nn.functional.one_hot(tokens, V).double()
    by_hand = weights[..., None] * (onehot - logits.softmax(-1)) @ model.lm_head.weight
    assert (found[:, 3:] - by_hand).abs().max() < EXACT
    assert found[:, :3].abs().max() == 0


def test_trailing_padding_counts_nothing_and_inner_padding_is_refused():
    model, prompt, tokens, weights = case("olmo2")
    prompts = prompt.expand(len(tokens), -1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, 2] = False
    padded = costate.layer_costates(model, prompts, tokens, weights, vocab=V, mask=mask)
    short = costate.layer_costates(model, prompts[:1], tokens[:1, :2], weights[:1, :2], vocab=V)
    assert (padded[:, :1, :5] - short).abs().max() < EXACT
    mask[3, 0] = False
    with pytest.raises(ValueError, match=r"mask: .*inside of completion 3"):
        costate.layer_costates(model, prompts, tokens, weights, vocab=V, mask=mask)


def test_bad_input_is_named():
    model, prompt, tokens, weights = case("olmo2")
    prompts = prompt.expand(len(tokens), -1)
    with pytest.raises(ValueError, match=r"layer: expected 0 to 2 or -1, .*got 3"):
        costate.layer_costates(model, prompts, tokens, weights, vocab=V, layers=[3])
    with pytest.raises(ValueError, match="advantages: expected shape"):
        costate.layer_costates(model, prompts, tokens, weights[:, :2], vocab=V)
    fused = tiny_model("olmo2", vocab=V, attention="sdpa", generator=seeded())
    for refuse in (
        lambda: recurrence.transformer(fused),
        lambda: costate.layer_influence(fused, prompt[0]),
        lambda: costate.credit_matrix(fused, prompts, tokens, weights, vocab=V, layer=0),
    ):
        with pytest.raises(ValueError, match=r"model: .*needs attn_implementation='eager', got 'sdpa'"):
            refuse()
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
    with pytest.raises(ValueError, match=r"completions: expected token ids in 0 to 4, got .* to 5"):
        recurrence.unroll(F, s, torch.tensor([[5, 0]]))
    with pytest.raises(ValueError, match="completions: expected one per state"):
        recurrence.unroll(F, s, tokens)
    with pytest.raises(ValueError, match="vocab: expected 1 to 5"):
        recurrence.transformer(model, vocab=6)
    with pytest.raises(ValueError, match="need a group of at least 2, got 1"):
        group_advantages(torch.zeros(3, 1))


def test_costates_leave_the_model_as_it_was():
    model, prompt, tokens, weights = case("olmo2")
    recurrence.transformer(model)
    costate.layer_costates(model, prompt.expand(len(tokens), -1), tokens, weights, vocab=V)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("by_hand", "least", "most"), [(False, 1.9, 2.3), (True, 1.3, 1.9)])
def test_a_measurement_costs_at_most_2_3_forward_passes(by_hand, least, most):
    model = tiny_model("olmo2", layers=3, hidden=64, heads=4, vocab=288, generator=seeded()).float()
    prompts = torch.randint(288, (8, 20), generator=seeded(1))
    tokens, advantages = prompts[:, :4], torch.randn(8, generator=seeded(2))
    with Flops() as forward, torch.no_grad():
        model(input_ids=torch.cat([prompts, tokens[:, :-1]], 1), use_cache=False)
    with Flops() as both:
        costate.layer_costates(model, prompts, tokens, advantages, vocab=269, by_hand=by_hand)
    assert least < both.total / forward.total < most


# --- A4: exactness by enumeration -----------------------------------------------------------------------------------


def token_rewards(every: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """r_t as an arbitrary function of o_1..o_t."""
    N, horizon = every.shape
    table = torch.randn(horizon, N, generator=generator, dtype=torch.float64)
    index = [(every[:, : t + 1] * V ** torch.arange(t + 1)).sum(1) for t in range(horizon)]
    return torch.stack([table[t][index[t]] for t in range(horizon)], 1)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("name", [*FAMILIES, "gru", "bigram"])
def test_expected_score_function_costate_is_the_value_gradient(name, gamma):
    F, s = any_recurrence(name)
    every = enumeration.all_completions(V, T)
    log_probs = recurrence.log_probs_of(F, every)
    r = token_rewards(every, seeded(2))
    togo, powers = enumeration.returns_to_go(r, gamma=gamma), gamma ** torch.arange(T, dtype=torch.float64)
    g = enumeration.value_gradient(log_probs, s[0], togo[:, 0])
    P = enumeration.probabilities(log_probs, s[0], V**T)
    assert abs(P.sum() - 1) < EXACT
    assert (P @ enumeration.scores(log_probs, s[0], powers * togo) - g).abs().max() < EXACT
    assert g.norm() > 1e-2
    # whole returns instead of returns-to-go: past rewards drop out in expectation
    assert (P @ enumeration.scores(log_probs, s[0], togo[:, :1].expand(-1, T)) - g).abs().max() < EXACT
    # planted: rewards before t instead of from t on
    before = (r * powers).cumsum(1) - r * powers
    assert (P @ enumeration.scores(log_probs, s[0], before) - g).abs().max() > 1e-3
    if (
        gamma < 1 and name != "bigram"
    ):  # planted: the discount of step t left out (a bigram's state has no later scores)
        assert (P @ enumeration.scores(log_probs, s[0], togo) - g).abs().max() > 1e-3
    # third route: finite differences of the value
    u = torch.randn(s[0].shape, generator=seeded(3), dtype=torch.float64)
    h = 1e-4
    slope = (
        enumeration.value(log_probs, s[0] + h * u, togo[:, 0])
        - enumeration.value(log_probs, s[0] - h * u, togo[:, 0])
    ) / (2 * h)
    assert abs(slope - g @ u) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_embeddings_are_as_good_a_state_as_the_cache(family):
    model, prompt, _, _ = case(family)
    F, every = recurrence.transformer(model), enumeration.all_completions(V, 2)
    R = torch.randn(len(every), generator=seeded(4), dtype=torch.float64)
    e = model.get_input_embeddings()(prompt)[0].detach()

    def log_probs(x):
        return recurrence.unroll(F, recurrence.read_prompt(model, x), every).logp

    g = enumeration.value_gradient(log_probs, e, R)
    P = enumeration.probabilities(log_probs, e, len(every))
    expected = torch.tensordot(P, enumeration.scores(log_probs, e, R[:, None].expand(-1, 2)), 1)
    assert (expected - g).abs().max() < EXACT


@pytest.fixture(scope="module")
def nine():
    """Nine completions of a small OLMo-2: probabilities, scores dlog P/ds, graded rewards."""
    g = seeded(5)
    model = tiny_model("olmo2", vocab=3, generator=g)
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, torch.tensor([[0, 1, 2]]))[0]
    log_probs = recurrence.log_probs_of(F, enumeration.all_completions(3, 2))
    P = enumeration.probabilities(log_probs, s, 9)
    S = enumeration.scores(log_probs, s, torch.ones(9, 2, dtype=torch.float64))
    return P, S, torch.randn(9, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_what_baselines_do_to_the_expected_costate(nine, group):
    P, S, R = nine
    g = (P * R) @ S

    def mean(**options):
        return (
            enumeration.expected_advantages(
                P, R, group=group, advantages=lambda x: group_advantages(x, **options)
            )
            @ S
        )

    assert (mean(baseline="mean", scale="none") - (1 - 1 / group) * g).abs().max() < EXACT
    assert (mean(baseline="leave_one_out", scale="none") - g).abs().max() < EXACT
    bent = mean(baseline="mean", scale="std")
    assert 1 - torch.cosine_similarity(bent, g, dim=0) > 1e-6


@pytest.mark.parametrize("group", [2, 3, 4, 5])
def test_std_normalisation_of_a_binary_reward_by_a_binomial_sum(nine, group):
    P, S, R = nine
    won = (R > 0).double()
    c = enumeration.expected_advantages(P, won, group=group, advantages=group_advantages)
    factor = enumeration.std_factor(float(P @ won), group=group)
    assert (c @ S - factor * ((P * won) @ S)).abs().max() < EXACT
    easier = enumeration.std_factor(float(P @ won) * 0.5, group=group)
    assert (abs(factor - easier) > 1e-3) == (group > 3)  # groups of 2 and 3 weigh all prompts alike
    with pytest.raises(ValueError, match=r"group: .*got 1"):
        enumeration.std_factor(0.5, group=1)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_leave_one_out_error_is_that_of_a_u_statistic(nine, group):
    P, S, R = nine
    g = (P * R) @ S
    members = enumeration.all_completions(9, group)
    A = group_advantages(R[members], baseline="leave_one_out", scale="none")
    estimates = (A[..., None] * S[members]).mean(1)
    brute = (P[members].prod(1) * (estimates - g).square().sum(1)).sum()
    assert abs(enumeration.leave_one_out_mse(P, R, S, group=group) - brute) < EXACT
    with pytest.raises(ValueError, match=r"group: .*got 1"):
        enumeration.leave_one_out_mse(P, R, S, group=1)


def test_sampled_completions_follow_the_enumerated_law():
    from replicate.rl.policies import SinglePolicy
    from replicate.rl.rollout import sample

    model, prompt, _, _ = case("olmo2")
    n, F = 20_000, recurrence.transformer(model)
    every = enumeration.all_completions(V, 2)
    P = enumeration.probabilities(
        recurrence.log_probs_of(F, every), recurrence.prompt_state(model, prompt)[0], V**2
    )
    uniforms = torch.rand(1, 1, n, 2, generator=seeded(8), dtype=torch.float64)
    drawn = sample(SinglePolicy(model), prompt[None], uniforms, vocab=V).tokens[0, 0]
    counts = torch.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V**2).double()
    chi2 = ((counts - n * P) ** 2 / (n * P)).sum()
    assert abs(chi2 - 24) / 48**0.5 < 4  # z-score of chi-square with 24 degrees of freedom


def test_cutting_the_token_path_silences_only_the_bigram():
    """A8."""
    last = torch.zeros(8, T, dtype=torch.float64)
    last[:, -1] = 1.0
    tokens = torch.randint(V, (8, T), generator=seeded(6))
    for name, heard in (("olmo2", True), ("gru", True), ("bigram", False)):
        F, s = any_recurrence(name)
        credit = costate.costates(F, s.expand(8, -1), tokens, last)
        assert credit[-1].norm() > 1e-3
        assert all((c.norm() > 1e-6) == heard for c in credit[:-1])


def test_enumeration_refuses_what_it_cannot_finish():
    with pytest.raises(ValueError, match=r"vocab, horizon: .*got 100\^10"):
        enumeration.all_completions(100, 10)
