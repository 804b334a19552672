"""The two paths of (20), their sizes, and what bounds the one through the token."""

import dataclasses
import math

import pytest
import torch

from replicate.lm import paths, recurrence, relaxed, token_path
from replicate.models import jacobians
from replicate.models.fresh import tiny_model

V, T = 5, 3
EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(name: str, seed: int = 0):
    g = seeded(seed)
    if name == "gru":
        F = recurrence.gru(vocab=V, hidden=6, generator=g)
        return F, F.read(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([1]))
    if name == "bigram":
        F = recurrence.bigram(vocab=V, hidden=6, generator=g)
        return F, F.read(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([1]))
    model = tiny_model(name, vocab=V, generator=g)
    return recurrence.transformer(model), recurrence.prompt_state(
        model, torch.randint(V, (1, 4), generator=g)
    )


WAYS = ["soft token", "Gumbel-softmax", "straight-through", "matched straight-through"]


@pytest.mark.parametrize("tau", [2.0, 1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", ["olmo2", "llama", "gpt2", "gru", "bigram"])
@pytest.mark.parametrize("way", WAYS)
def test_the_two_paths_add_up_to_finite_differences(name, way, tau):
    F, s = fresh(name)
    ways = token_path.relaxations(relaxed.gumbel(1, V, generator=seeded(3)))
    assert list(ways) == WAYS
    options = {"scale": 1.7, "tau": tau} | ways[way]
    found, (whole, steps) = token_path.paths(F, s, **options), token_path.finite_differences(F, s, **options)
    size = (whole * steps).abs().max()
    assert ((found.attention + found.token - whole) * steps).abs().max() < 1e-8 * size
    no_rank_one = dataclasses.replace(found, rank_one=0.0)
    assert ((found.attention + no_rank_one.token - whole) * steps).abs().max() > 1e-3 * size
    by_hand = torch.cat([torch.eye(found.kept, s.shape[1], dtype=torch.float64), found.attention])
    assert abs(found.attention_norm - float(torch.linalg.svdvals(by_hand)[0])) < 1e-9


def test_what_each_relaxation_feeds_and_whose_jacobian_goes_back():
    F, s = fresh("olmo2")
    noise = relaxed.gumbel(1, V, generator=seeded(3))
    z, E = F.logits(s), F.embeddings
    policy, sample, token = (z / 0.4).softmax(-1), ((z + noise) / 0.4).softmax(-1), (z + noise).argmax(-1)
    expected = {
        "soft token": (policy, policy @ E),
        "Gumbel-softmax": (sample, sample @ E),
        "straight-through": (sample, E[token]),
        "matched straight-through": (policy, E[token]),
    }
    for way, options in token_path.relaxations(noise).items():
        found = token_path.paths(F, s, tau=0.4, **options)
        for is_, should in zip((found.soft, found.leaves[1][0]), expected[way], strict=True):
            torch.testing.assert_close(is_, should[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "shared"), [("olmo2", 0), ("llama", 0), ("gpt2", 0), ("gru", 6)])
def test_in_a_transformer_the_two_paths_read_different_entries(name, shared):
    found = token_path.paths(*fresh(name))
    assert int((found.attention.any(0) & found.token.any(0)).sum()) == shared
    assert found.attention.any()
    assert found.token.any()


@pytest.mark.parametrize("tau", [2.0, 0.5])
@pytest.mark.parametrize("noisy", [False, True])
def test_finite_differences_against_autograd_through_the_relaxed_step(tau, noisy):
    F, s = fresh("olmo2")
    noise = relaxed.gumbel(1, V, generator=seeded(3)) if noisy else None
    kept = F.kept(s.shape[1])

    def step(x):
        z = 1.3 * F.logits(x) + (0.0 if noise is None else noise)
        return F.advance(x, (z / tau).softmax(-1) @ F.embeddings)[:, kept:]

    found, steps = token_path.finite_differences(F, s, scale=1.3, tau=tau, noise=noise)
    whole = jacobians.jacobian(step, s)[0]
    assert ((found - whole) * steps).abs().max() < 1e-9 * (whole * steps).abs().max()


def test_a_state_that_is_not_read_has_jacobian_zero():
    found = token_path.paths(*fresh("bigram"))
    assert found.attention.shape == (6, 6)
    assert not found.attention.any()
    assert found.token.any()


@pytest.mark.parametrize("name", ["olmo2", "llama", "gpt2", "gru", "bigram"])
def test_norms_of_matrices_that_are_not_formed_are_those_of_the_matrices(name, monkeypatch):
    """The wide route: Lanczos on products with vectors, and columns, against dense singular values."""
    F, s = fresh(name)
    names = ("attention_norm", "attention_new_norm", "advance_norm", "token_norm")

    def everything():
        found = token_path.paths(F, s, scale=1.3, tau=0.7)
        return found.formed, [*(getattr(found, name) for name in names), token_path.entropy_side(found)]

    formed, dense = everything()
    monkeypatch.setattr(paths, "FORMED", 0)
    not_formed, wide = everything()
    assert (formed, not_formed) == (True, False)
    assert wide == pytest.approx(dense, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_the_entropy_side_is_above_the_path_and_made_of_its_factors(tau):
    found = token_path.paths(*fresh("olmo2"), tau=tau)
    H = float(torch.special.entr(found.soft).sum())
    sizes = [float(torch.linalg.svdvals(m)[0]) for m in (found.advance, found.embed, found.head)]
    assert token_path.entropy_side(found) == pytest.approx(math.prod(sizes) * H / (2 * math.log(2)) / tau)
    assert float(torch.linalg.svdvals(found.token)[0]) < token_path.entropy_side(found)


def test_paths_along_a_rollout_are_those_at_its_states():
    F, s = fresh("olmo2")
    how = {"tau": 0.7, "noise": relaxed.gumbel(1, T, V, generator=seeded(3))}
    steps = token_path.paths_along(F, s, horizon=T, **how)
    states = relaxed.relaxed_rollout(F, s, horizon=T, **how).states
    assert len(steps) == T - 1
    for t, step in enumerate(steps):
        alone = token_path.paths(F, states[t].detach(), tau=0.7, noise=how["noise"][:, t])
        assert (step.token - alone.token).abs().max() < EXACT
        assert (step.attention - alone.attention).abs().max() < EXACT
