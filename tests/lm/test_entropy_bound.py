"""Both sides of (21) and (23) with matched straight-through: against finite differences and the rollout itself."""

import math

import pytest
import torch

from replicate.lm import entropy_bound, gap, recurrence, spectra
from replicate.models.fresh import tiny_model
from replicate.models.precision import full_precision

V, LENGTH = 7, 5
FAMILIES = ("olmo2", "llama", "gpt2")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(family: str = "olmo2", seed: int = 0, batch: int = 3):
    g = seeded(seed)
    model = tiny_model(family, vocab=V, generator=g)
    return model, torch.randint(V, (batch, LENGTH), generator=g), torch.randint(V, (batch,), generator=g)


def dense(model, prefix, token):
    """B [V, V], by central differences of the next logits in the weights of the token that is fed; pi [V]."""
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prefix)
    p, h = torch.eye(V, dtype=torch.float64)[token], 1e-4

    def logits(q):
        z = F.logits(F.advance(s, (q @ F.embeddings)[None]))[0]
        return z - z.mean()

    columns = [(logits(p + h * e) - logits(p - h * e)) / (2 * h) for e in torch.eye(V, dtype=torch.float64)]
    return torch.stack(columns, 1), F.logits(s).softmax(-1)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_is_what_finite_differences_see(family):
    model, prefixes, _ = fresh(family)
    found = entropy_bound.token_paths(model, prefixes, vocab=V, generator=seeded(1))
    pi = entropy_bound.policies(model, prefixes, vocab=V)[:, -1]
    taken = torch.multinomial(pi, 1, generator=seeded(1))[:, 0]
    for i, token in enumerate(taken):
        B, p = dense(model, prefixes[i : i + 1], token)
        D = gap.softmax_jacobian(p)
        assert float(found.exact[i]) == pytest.approx(spectra.operator_norm(B @ D), rel=1e-5)
        centre = torch.eye(V) - 1 / V
        assert float(found.spread[i]) == pytest.approx(spectra.operator_norm(B @ centre.double()), rel=1e-5)
        coins = [B @ fair_coin(v, w) for v in range(V) for w in range(v)]
        assert float(found.coin[i]) == pytest.approx(max(map(spectra.operator_norm, coins)), rel=1e-5)
        assert float(found.entropy[i]) == pytest.approx(float(torch.special.entr(p).sum()))
        assert float(found.softmax[i]) == pytest.approx(spectra.operator_norm(D))


def fair_coin(v, w):
    p = torch.zeros(V, dtype=torch.float64)
    p[[v, w]] = 0.5
    return gap.softmax_jacobian(p)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_sides_are_in_order(family):
    for seed in range(4):
        model, prefixes, _ = fresh(family, seed=seed)
        found = entropy_bound.token_paths(model, prefixes, vocab=V, generator=seeded(1))
        exact, (pairs, spread, paper) = found.exact, found.right.values()
        assert (exact < pairs).all()
        assert (pairs <= spread * (1 + 1e-12)).all()
        assert (spread < paper).all()
        assert (exact > 1e-4 * pairs).all()


def test_the_papers_constant_is_a_product_of_three_norms():
    model, prefixes, _ = fresh(batch=1)
    found = entropy_bound.token_paths(model, prefixes, vocab=V, generator=seeded(1))
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prefixes)
    token = torch.multinomial(F.logits(s).softmax(-1), 1, generator=seeded(1))[0]
    width = model.config.hidden_size
    step = torch.autograd.functional.jacobian(lambda e: F.advance(s, e)[0, -width:], F.embeddings[token])
    head = model.get_output_embeddings().weight.detach()
    sizes = [spectra.operator_norm(table - table.mean(0)) for table in (head, F.embeddings)]
    product = spectra.operator_norm(step[:, 0]) * sizes[0] * sizes[1]
    assert float(found.factors[0]) == pytest.approx(product, rel=1e-8)


def test_the_hidden_path_is_the_derivative_of_the_next_final_state():
    """|dh'/dh| of a straight-through step, by autograd through the step as a whole."""
    model, prefixes, _ = fresh(batch=1)
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prefixes)
    width = model.config.hidden_size
    token = torch.multinomial(F.logits(s).softmax(-1), 1, generator=seeded(1))[0]

    def step(h):
        p = F.logits(torch.cat([s[:, :-width], h[None]], 1)).softmax(-1)
        fed = torch.nn.functional.one_hot(token, V) + p - p.detach()
        return F.advance(s, fed @ F.embeddings)[0, -width:]

    with full_precision():
        whole = torch.autograd.functional.jacobian(step, s[0, -width:])
    found = entropy_bound.token_paths(model, prefixes, vocab=V, generator=seeded(1))
    assert float(found.hidden[0]) == pytest.approx(spectra.operator_norm(whole), rel=1e-8)


def rolled(model, prompt, tokens, y, *, cut):
    """dR/dx along ``tokens``; ``cut`` says at which steps (or at all) the token path is cut."""
    cut = [cut] * len(tokens) if isinstance(cut, bool) else cut
    x = model.get_input_embeddings()(prompt).detach().requires_grad_()
    F, s = recurrence.transformer(model), recurrence.read_prompt(model, x)
    for o, closed in zip(torch.nn.functional.one_hot(tokens, V).double(), cut, strict=True):
        p = F.logits(s).softmax(-1)
        s = F.advance(s, (o[None] if closed else o + p - p.detach()) @ F.embeddings)
    return torch.autograd.grad(F.logits(s).softmax(-1)[0, y], x)[0]


@pytest.mark.parametrize("between", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_error_and_signal_are_those_of_the_rollout(family, between):
    model, prompts, labels = fresh(family)
    found = entropy_bound.cut_costates(model, prompts, labels, between=between, vocab=V, generator=seeded(2))
    for i, y in enumerate(labels):
        full, cut = (rolled(model, prompts[i : i + 1], found.tokens[i], y, cut=c) for c in (False, True))
        assert float(found.signal[i]) == pytest.approx(float(full.norm()), rel=1e-9)
        assert float(found.error[i]) == pytest.approx(float((full - cut).norm()), rel=1e-9)
    assert (found.error <= found.summands.sum(1) * (1 + 1e-12)).all()
    assert (found.summands.sum(1) < found.entropy).all()
    assert (found.entropy <= found.factors * (1 + 1e-12)).all()
    if between == 1:
        assert torch.allclose(found.error, found.summands[:, 0], rtol=1e-12)


def test_the_last_summand_is_what_the_last_token_path_alone_carries():
    model, prompts, labels = fresh()
    found = entropy_bound.cut_costates(model, prompts, labels, between=2, vocab=V, generator=seeded(2))
    for i, y in enumerate(labels):
        args = model, prompts[i : i + 1], found.tokens[i], y
        one, both = (rolled(*args, cut=cut) for cut in ([True, False], True))
        assert float(found.summands[i, 1]) == pytest.approx(float((one - both).norm()), rel=1e-9)


def test_right_side_of_one_step_by_hand():
    """|dz/dx| |u| H / (2 ln 2), each factor by autograd on its own."""
    model, prompts, labels = fresh(batch=1)
    found = entropy_bound.cut_costates(model, prompts, labels, between=1, vocab=V, generator=seeded(2))
    x = model.get_input_embeddings()(prompts).detach()

    def centred_logits(x):
        with full_precision():
            z = model(inputs_embeds=x).logits[0, -1]
        return z - z.mean()

    reach = torch.autograd.functional.jacobian(centred_logits, x).flatten(1)
    F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompts)
    e = F.embeddings[found.tokens[0]].requires_grad_()
    reward = F.logits(F.advance(s, e)).softmax(-1)[0, labels[0]]
    u = F.embeddings @ torch.autograd.grad(reward, e)[0][0]
    H = float(torch.special.entr(F.logits(s).softmax(-1)).sum())
    size = spectra.operator_norm(reach) * float((u - u.mean()).norm()) * H / (2 * math.log(2))
    assert float(found.entropy[0]) == pytest.approx(size, rel=1e-8)
    assert float(found.entropies[0, 0]) == pytest.approx(H)


@pytest.mark.parametrize("family", FAMILIES)
def test_reach_by_hand_and_by_autograd_agree(family, monkeypatch):
    model, prompts, _ = fresh(family)
    tokens = torch.tensor([[1, 2], [0, 3], [4, 4]])
    one = entropy_bound.reach_of_prompt(model, prompts, tokens)
    monkeypatch.setattr(entropy_bound.olmo2, "supports", lambda model: False)
    two = entropy_bound.reach_of_prompt(model, prompts, tokens)
    assert one.shape == (3, model.config.hidden_size, LENGTH * model.config.hidden_size)
    assert (one - two).abs().max() < 1e-10


def test_expectations_are_those_of_every_single_token():
    model, prompts, labels = fresh(batch=1)
    y = int(labels[0])
    found = entropy_bound.expected_costates(model, prompts, y, vocab=V)
    pi = entropy_bound.policies(model, prompts, vocab=V)[0, -1]
    full, cut = (
        sum(p * rolled(model, prompts, torch.tensor([o]), y, cut=c) for o, p in enumerate(pi))
        for c in (False, True)
    )
    x = model.get_input_embeddings()(prompts).detach().requires_grad_()
    F, s = recurrence.transformer(model), recurrence.read_prompt(model, x)
    behind = F.advance(s.expand(V, -1), F.embeddings)
    value = (F.logits(s).softmax(-1)[0] * F.logits(behind).softmax(-1)[:, y]).sum()  # V(x), in closed form
    (g,) = torch.autograd.grad(value, x)
    assert found["signal"] == pytest.approx(float(full.norm()), rel=1e-9)
    assert found["cut"] == pytest.approx(float((full - cut).norm()), rel=1e-9)
    assert found["sent"] == pytest.approx(float((g - full).norm()), rel=1e-9)
    assert found["H"] == pytest.approx(float(torch.special.entr(pi).sum()))
    assert found["cut"] < found["entropy"]


def test_expected_right_side_is_the_mean_of_those_of_samples():
    model, prompts, labels = fresh(batch=1)
    found = entropy_bound.expected_costates(model, prompts, int(labels[0]), vocab=V)
    many = entropy_bound.cut_costates(
        model,
        prompts.expand(600, -1),
        labels.expand(600),
        between=1,
        vocab=V,
        generator=seeded(3),
    )
    error = float(many.entropy.std()) / 600**0.5
    assert abs(float(many.entropy.mean()) - found["entropy"]) < 4 * error


def test_rescaling_final_norm_and_head_moves_no_output_and_no_comparison():
    model, prompts, labels = fresh()

    def measured():
        step = entropy_bound.token_paths(model, prompts, vocab=V, generator=seeded(4))
        cut = entropy_bound.cut_costates(model, prompts, labels, between=2, vocab=V, generator=seeded(4))
        return step, cut, entropy_bound.policies(model, prompts, vocab=V)

    step, cut, pi = measured()
    entropy_bound.rescaled(model, torch.randn(model.config.hidden_size, generator=seeded(5)).double().exp())
    step_after, cut_after, pi_after = measured()
    assert (pi - pi_after).abs().max() < 1e-12
    for name in ("exact", "coin", "spread", "entropy"):
        assert torch.allclose(getattr(step, name), getattr(step_after, name), rtol=1e-9), name
    for name in ("error", "signal", "entropy"):
        assert torch.allclose(getattr(cut, name), getattr(cut_after, name), rtol=1e-9), name
    for name in ("hidden", "factors"):
        assert ((getattr(step_after, name) / getattr(step, name) - 1).abs() > 0.05).any(), name


def test_an_empty_stretch_in_between_is_named():
    model, prompts, labels = fresh()
    with pytest.raises(ValueError, match="between: expected at least 1 token, got 0"):
        entropy_bound.cut_costates(model, prompts, labels, between=0, vocab=V, generator=seeded())
