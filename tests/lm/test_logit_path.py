"""The path through the token at the outputs: both sides of (21), the two paths from the prompt, what cutting loses."""

import itertools
import math

import pytest
import torch

from replicate.lm import logit_path, paths, recurrence, relaxed
from replicate.models.fresh import rescaled, tiny_model

V = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(name: str):
    g = seeded(1)
    model = tiny_model(name, vocab=V, generator=g)
    prompt = torch.randint(V, (1, 4), generator=g)
    return model, prompt, recurrence.transformer(model), recurrence.prompt_state(model, prompt)


def drawn(F, s, way: str, *, tau: float = 1.0, draws: int = 3):
    noise = relaxed.gumbel(draws, V, generator=seeded(2))
    hard, matched = way == "straight-through", way == "matched straight-through"
    return paths.soft_tokens(F, s, 1.0, tau, None if way == "soft token" else noise, hard, matched)


def centring() -> torch.Tensor:
    return torch.eye(V).double() - 1 / V


def largest(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


@pytest.mark.parametrize("tau", [1.0, 0.4])
@pytest.mark.parametrize("way", ["soft token", "Gumbel-softmax", "matched straight-through"])
@pytest.mark.parametrize("name", ["olmo2", "gpt2"])
def test_both_sides_of_21_against_matrices_written_out(name, way, tau):
    _, _, F, s = fresh(name)
    soft, fed = drawn(F, s, way, tau=tau)
    found = logit_path.logit_paths(F, s, soft, fed, tau=tau)
    for i, (p, e) in enumerate(zip(soft, fed, strict=True)):
        B = centring() @ torch.autograd.functional.jacobian(
            lambda x, e=e: F.logits(F.advance(s, (e + (x - 1 / V) @ F.embeddings)[None]))[0],
            torch.full((V,), 1 / V, dtype=torch.float64),
        )
        K = (torch.diag(p) - torch.outer(p, p)) / tau
        B = B @ centring()  # K is blind to what all tokens share
        assert float(found.exact[i]) == pytest.approx(largest(B @ K), rel=1e-9)
        assert float(found.spread[i]) == pytest.approx(largest(B), rel=1e-9)
        assert float(found.softmax[i]) == pytest.approx(largest(K), rel=1e-9)
        coins = []
        for v, w in itertools.combinations(range(V), 2):
            coin = torch.zeros(V).double()
            coin[[v, w]] = 0.5
            coins.append(largest(B @ (torch.diag(coin) - torch.outer(coin, coin))))
        assert float(found.coin[i]) == pytest.approx(max(coins), rel=1e-6)
    sides = [found.exact, *found.right.values()]
    assert all((a <= b * (1 + 1e-9)).all() for a, b in itertools.pairwise(sides))
    bits = torch.special.entr(soft).sum(-1) / math.log(2) / tau
    torch.testing.assert_close(found.right["paper"], bits / 2 * found.factors)


def test_forward_passes_alone_give_the_same_norm():
    _, _, F, s = fresh("olmo2")
    soft, fed = drawn(F, s, "matched straight-through", draws=1)
    exact = float(logit_path.logit_paths(F, s, soft, fed).exact)
    assert logit_path.differenced(F, s, soft, fed) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("name", ["olmo2", "gpt2"])
def test_both_paths_from_the_prompt_add_up_to_the_derivative_of_a_soft_step(name):
    model, prompt, F, s = fresh(name)
    soft, fed = drawn(F, s, "soft token", tau=0.7)
    x = model.get_input_embeddings()(prompt).detach()

    def next_logits(x, cut):
        state = recurrence.read_prompt(model, x)
        p = (F.logits(state) / 0.7).softmax(-1)
        return F.logits(F.advance(state, (p.detach() if cut else p) @ F.embeddings))[0]

    def slope(cut):
        return centring() @ torch.autograd.functional.jacobian(lambda x: next_logits(x, cut), x).flatten(1)

    (found,) = logit_path.from_prompt(model, F, prompt, [soft], [fed], [0.7])
    assert float(found.attention) == pytest.approx(largest(slope(True)), rel=1e-8)
    assert float(found.token) == pytest.approx(largest(slope(False) - slope(True)), rel=1e-8)
    reach = torch.autograd.functional.jacobian(lambda x: F.logits(recurrence.read_prompt(model, x))[0], x)
    assert found.reach == pytest.approx(largest(centring() @ reach.flatten(1)), rel=1e-8)


def test_jacobians_that_are_not_formed_have_the_same_norms(monkeypatch):
    model, prompt, F, _ = fresh("olmo2")
    noise = relaxed.gumbel(4, V, generator=seeded(2))
    formed = logit_path.two_paths(model, F, prompt, noise, taus=(1.0, 0.3))
    monkeypatch.setattr(logit_path, "FORMED", 0)
    wide = logit_path.two_paths(model, F, prompt, noise, taus=(1.0, 0.3))
    assert len(formed) == 8
    for a, b in zip(formed, wide, strict=True):
        assert (a.pop("way"), a.pop("tau")) == (b.pop("way"), b.pop("tau"))
        assert a == pytest.approx(b, rel=1e-3)


def test_two_paths_are_ratios_of_the_sizes_over_the_noise():
    model, prompt, F, s = fresh("olmo2")
    noise = relaxed.gumbel(5, V, generator=seeded(2))
    rows = {row["way"]: row for row in logit_path.two_paths(model, F, prompt, noise, taus=(0.5,))}
    soft, fed = paths.soft_tokens(F, s, 1.0, 0.5, noise, True)
    (sizes,) = logit_path.from_prompt(model, F, prompt, [soft], [fed], [0.5])
    bound = logit_path.logit_paths(F, s, soft, fed, tau=0.5).right["paper"] * sizes.reach
    row = rows["straight-through"]
    assert row["token"] == pytest.approx(float((sizes.token / sizes.attention).median()))
    assert row["bound"] == pytest.approx(float((bound / sizes.attention).median()))
    assert row["share low"] == pytest.approx(float((sizes.token / bound).quantile(0.1)))
    assert rows["soft token"]["token low"] == rows["soft token"]["token high"]


def test_no_size_moves_when_final_norm_and_head_are_rescaled():
    model, prompt, *_ = fresh("olmo2")
    noise = relaxed.gumbel(3, V, generator=seeded(2))

    def everything():
        F, s = recurrence.transformer(model), recurrence.prompt_state(model, prompt)
        found = logit_path.logit_paths(F, s, *paths.soft_tokens(F, s, 1.0, 1.0, noise, False, True))
        ratios = [
            x for row in logit_path.two_paths(model, F, prompt, noise, taus=(1.0,)) for x in row.values()
        ]
        return [*(float(x) for x in found.exact / found.coin), *(x for x in ratios if not isinstance(x, str))]

    before = everything()
    rescaled(model, by=300.0)
    assert everything() == pytest.approx(before, rel=1e-9)


def test_what_cutting_a_token_loses_against_the_product_of_factors():
    """cut - lambda = -(dz/dx)^T D E[u], u the worth of each token to first order behind each sampled one."""
    model, prompt, F, s = fresh("olmo2")
    x = model.get_input_embeddings()(prompt).detach()
    reach = torch.autograd.functional.jacobian(lambda x: F.logits(recurrence.read_prompt(model, x))[0], x)
    pi, u = F.logits(s)[0].softmax(-1), torch.zeros(V).double()
    for o in range(V):
        e = F.embeddings[o : o + 1].clone().requires_grad_()
        after = F.logits(F.advance(s, e))[0].softmax(-1)
        (slope,) = torch.autograd.grad(after.max(), e)
        u += pi[o] * (F.embeddings @ slope[0])
    lost = (pi * (u - pi @ u)) @ reach.flatten(1)
    found = logit_path.cut_token(model, prompt)
    assert found["error"] == pytest.approx(float(lost.norm()), rel=1e-9)
    assert found["H between"] == pytest.approx(float(torch.special.entr(pi).sum()))


@pytest.mark.parametrize("nats", [1.2, 0.05])
def test_entropies_are_those_that_were_asked_for(nats):
    model, prompt, *_ = fresh("olmo2")
    found = logit_path.cut_token(model, prompt, between=nats, rewarded=nats / 2)
    assert found["H between"] == pytest.approx(nats, rel=1e-9)
    assert found["H rewarded"] == pytest.approx(nats / 2, rel=1e-9)
    assert found["error"] > 0
    assert found["signal"] > 0
