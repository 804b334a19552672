"""Costates by differences against backward passes: what is moved moves, what cannot move stays, errors are noticed."""

import math

import pytest
import torch

from replicate.lm import costate, differences, recurrence, relaxed
from replicate.models import olmo2, olmo2_cache
from replicate.models.fresh import rescaled, tiny_model
from replicate.models.hooks import FINAL, hidden_states

V, T = 5, 3
FAMILIES = ("olmo2", "llama", "gpt2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def case(family, batch=4):
    g = seeded()
    model = tiny_model(family, vocab=V, generator=g)
    prompts, tokens = torch.randint(V, (batch, 4), generator=g), torch.randint(V, (batch, T), generator=g)
    return model, prompts, tokens, torch.randn(batch, T, generator=g, dtype=torch.float64)


def test_slopes_are_of_fourth_order():
    def error(step):
        return abs(
            float(differences.slope(lambda h: torch.tensor(1.0 + h, dtype=torch.float64).exp(), step=step))
            - math.e
        )

    assert error(0.1) / error(0.05) == pytest.approx(16, rel=0.02)


def test_a_gradient_by_differences_is_that_of_autograd():
    x = torch.randn(3, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    y = (x.sin() * x.roll(1, 0)).sum()
    (exact,) = torch.autograd.grad(y, x)
    found = differences.gradient(lambda z: (z.sin() * z.roll(1, 0)).sum(), x.detach())
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


def test_a_direction_is_measured_by_its_state_and_half_along_what_is_near():
    state, near = torch.full((50,), 3.0).double(), torch.zeros(50).double()
    near[7] = 1.0
    v = differences.direction(state, seeded(), near=near)
    assert v.abs().max() == pytest.approx(3.0)
    assert float(v[7] / v.norm()) == pytest.approx(0.5**0.5, abs=0.2)
    assert differences.direction(state, seeded(), near=0 * near).abs().max() == pytest.approx(3.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_a_layer_moves_it_and_what_is_above(family):
    model, prompts, _, _ = case(family)
    before, logits = hidden_states(model, prompts)
    still, same = differences.moved(model, prompts, layer=FINAL)
    assert torch.allclose(same, logits, atol=1e-6)
    by = 0.1 * torch.randn(before[0].shape, generator=seeded(1), dtype=torch.float64)
    for layer in (0, 1, 2, FINAL):
        after, _ = differences.moved(model, prompts, layer=layer, by=by)
        assert torch.allclose(after[layer], still[layer] + by)
        above = range(layer + 1, 4) if layer != FINAL else ()
        assert all((after[k] - still[k]).norm() > 1e-3 for k in above)
        assert all(torch.equal(after[k], still[k]) for k in range(layer if layer != FINAL else 3))
    with pytest.raises(ValueError, match="layer: expected 0 to 2 or -1"):
        differences.moved(model, prompts, layer=3, by=by)


@pytest.mark.parametrize("family", FAMILIES)
def test_def_2s_terms_by_differences_are_the_credit_matrix(family):
    """And their sum over k is the costate, at every layer."""
    model, prompts, tokens, weights = case(family)
    lam = costate.layer_costates(model, prompts, tokens, weights, vocab=V)
    for layer in (0, 1, 2, FINAL):
        v = differences.direction(lam[layer], seeded(1)) / lam[layer].square().mean().sqrt()
        found = differences.credit(model, prompts, tokens, weights, vocab=V, layer=layer, along=v)
        exact = costate.credit_matrix(model, prompts, tokens, weights, vocab=V, layer=layer)
        wanted = (exact * v[:, None, 3:]).sum(-1)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.sum(1), (lam[layer] * v)[:, 3:].sum(-1), rtol=1e-6, atol=1e-7)
        assert not found.triu(1).any() or found.triu(1).abs().max() < 1e-12
    planted = differences.credit(model, prompts, tokens, weights.roll(1, 0), vocab=V, layer=0, along=v)
    assert (planted - wanted).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_moves_is_what_the_jacobians_say(family):
    model, prompts, _, _ = case(family)
    exact = costate.layer_influence(model, prompts[0])
    moved = differences.reach(model, prompts[0], generator=seeded(1))
    assert torch.equal(moved > 0, exact > 0)
    for found in (exact, moved):
        assert 1e-4 < costate.upward_share(found) < 1
    some = differences.reach(model, prompts[0], layers=[0, FINAL], generator=seeded(1))
    assert torch.equal(some > 0, (exact > 0)[[0, 3]][:, :, [0, 3]])


def test_the_share_that_goes_upwards_has_no_units():
    model, prompts, _, _ = case("olmo2")
    before = costate.upward_share(costate.layer_influence(model, prompts[0]))
    rescaled(model, by=128.0)
    assert costate.upward_share(costate.layer_influence(model, prompts[0])) == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", [1.0, 128.0])
def test_the_recursion_passes_its_routes_and_wrong_ones_do_not(family, by):
    model, prompts, tokens, weights = case(family)
    if family != "gpt2":
        rescaled(model, by=by)
    found = differences.recursion_errors(model, prompts, tokens, weights, vocab=V, generator=seeded(1))
    assert found["differences"] < 1e-7
    assert found["one pass"] < 1e-10 if family == "olmo2" else math.isnan(found["one pass"])
    assert min(found["no identity block"], found["newest column"]) > 0.01


def test_differences_notice_a_costate_of_other_weights():
    model, prompts, tokens, weights = case("olmo2")
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompts)
    states = recurrence.unroll(F, s, tokens).states
    wrong = costate.costates(F, s, tokens, weights.roll(1, 0))
    off = differences.along_states(F, states, tokens, weights, wrong, generator=seeded(1))
    assert min(off) > 1e-3


@pytest.mark.parametrize("layers", [1, 3])
def test_one_written_out_pass_gives_the_costates_of_every_cache(layers):
    g = seeded()
    model = tiny_model("olmo2", layers=layers, vocab=V, generator=g)
    prompts, tokens = torch.randint(V, (3, 4), generator=g), torch.randint(V, (3, 4), generator=g)
    weights = torch.randn(3, 4, generator=g, dtype=torch.float64)
    F = recurrence.transformer(model)
    exact = costate.costates(F, recurrence.prompt_state(model, prompts), tokens, weights)
    found = costate.cache_costates(model, prompts, tokens, weights, vocab=V)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="by_hand: expected a plain OLMo-2, got LlamaForCausalLM"):
        costate.cache_costates(case("llama")[0], prompts, tokens, weights, vocab=V)
    with pytest.raises(ValueError, match="tape: expected a pass that starts at layer 0, got one at 1"):
        olmo2_cache.cache_costates(olmo2.forward(model, prompts, start=1), torch.zeros(3, 1, 16).double())


@pytest.mark.parametrize("net", ["gru", "elman", "bigram"])
def test_credit_at_fixed_tokens_is_the_same_by_both_routes(net):
    g = seeded()
    F = getattr(recurrence, net)(vocab=V, hidden=6, generator=g)
    s = F.read(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([1])).expand(7, -1)
    by_grad, by_slope = differences.credit_at_tokens(F, s, torch.randint(V, (7, 4), generator=g))
    torch.testing.assert_close(by_slope, by_grad, rtol=1e-7, atol=1e-9)
    assert by_grad.shape == (7, 3)
    assert (by_grad[:, 0] > 1e-4).all()
    later = torch.cat([by_grad[:, 1:], by_slope[:, 1:]])
    assert not later.any() if net == "bigram" else (later > 1e-6).all()


def test_costates_at_fed_tokens_are_those_of_the_whole_objective():
    model, prompts, tokens, weights = case("olmo2")
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompts)
    found = costate.costates_at_tokens(F, s, tokens, weights)
    lam = costate.layer_costates(model, prompts, tokens, weights, vocab=V, layers=[0])[0]
    torch.testing.assert_close(found, lam[:, 4:], rtol=1e-9, atol=1e-11)


def test_around_a_token_only_the_cut_loses_what_lies_behind_it():
    model, prompts, _, _ = case("olmo2")
    embedded, y = model.get_input_embeddings()(prompts), torch.tensor([0, 1, 2, 3])
    whole, entropies = relaxed.around_token(model, embedded, y, vocab=V)[::2]
    cut = relaxed.around_token(model, embedded, y, vocab=V, cut=True)
    assert (entropies > 0).all()
    assert not cut[0].any()
    assert cut[1].norm() > 1e-3
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompts)
    v, kept = torch.zeros_like(s), F.kept(s.shape[1])
    v[:, kept:] = whole / whole.norm(dim=1, keepdim=True)
    reward = lambda soft: soft[:, 1].gather(1, y[:, None])[:, 0]  # noqa: E731
    slopes = differences.slope(lambda h: relaxed.relaxed_value(F, s + h * v, reward, horizon=2))
    torch.testing.assert_close(slopes, whole.norm(dim=1), rtol=1e-7, atol=1e-10)


def test_rewards_slopes_at_a_prompts_ends_are_the_norms_of_its_costates():
    model, prompts, tokens, _ = case("olmo2")
    y = tokens[:, :1]
    lam = costate.layer_costates(model, prompts, y, torch.ones(4).double(), vocab=V, layers=[0])[0]
    pi = differences.log_probs_moved(model, prompts, y, vocab=V, layer=0, by=torch.zeros_like(lam)).exp()
    lam = pi[..., None] * lam
    found = differences.reward_at_ends(model, prompts, y, lam, vocab=V)
    torch.testing.assert_close(found, lam[:, [0, -1]].norm(dim=-1).T, rtol=1e-7, atol=1e-10)
