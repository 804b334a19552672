"""The two paths of (20), their sizes, and what bounds the one through the token."""

import dataclasses
import itertools
import math

import pytest
import torch

from replicate.lm import paths, recurrence, relaxed, spectra, token_path
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


@pytest.mark.parametrize("tau", [2.0, 1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", ["olmo2", "llama", "gpt2", "gru", "bigram"])
@pytest.mark.parametrize("way", ["no noise", "Gumbel-softmax", "straight-through"])
def test_the_two_paths_add_up(name, way, tau):
    F, s = fresh(name)
    options = {"scale": 1.7, "tau": tau} | token_path.relaxations(relaxed.gumbel(1, V, generator=seeded(3)))[
        way
    ]
    found, whole = token_path.paths(F, s, **options), token_path.relaxed_jacobian(F, s, **options)
    assert (found.attention + found.token - whole).abs().max() < EXACT
    no_rank_one = dataclasses.replace(found, rank_one=0.0)
    assert (found.attention + no_rank_one.token - whole).abs().max() > 1e-3
    by_hand = torch.cat([torch.eye(found.kept, s.shape[1], dtype=torch.float64), found.attention])
    assert abs(found.attention_norm - float(torch.linalg.svdvals(by_hand)[0])) < 1e-9


@pytest.mark.parametrize(("name", "shared"), [("olmo2", 0), ("llama", 0), ("gpt2", 0), ("gru", 6)])
def test_in_a_transformer_the_two_paths_read_different_entries(name, shared):
    found = token_path.paths(*fresh(name))
    assert int((found.attention.any(0) & found.token.any(0)).sum()) == shared
    assert found.attention.any()
    assert found.token.any()


@pytest.mark.parametrize("entries", [1, 2**22])  # one Jacobian at a time, and all at once
@pytest.mark.parametrize("way", ["no noise", "Gumbel-softmax", "straight-through"])
@pytest.mark.parametrize("name", ["olmo2", "gru"])
def test_path_norms_are_those_of_the_paths_draw_by_draw(name, way, entries, monkeypatch):
    monkeypatch.setattr(token_path, "_ENTRIES", entries)
    F, s = fresh(name)
    noise = relaxed.gumbel(6, V, generator=seeded(3))
    attention, token = token_path.path_norms(F, s, scale=1.3, tau=0.4, **token_path.relaxations(noise)[way])
    assert len(attention) == len(token) == (1 if way == "no noise" else 6)
    for i in range(len(token)):
        one = token_path.paths(F, s, scale=1.3, tau=0.4, **token_path.relaxations(noise[i : i + 1])[way])
        assert abs(attention[i] - spectra.operator_norm(one.attention)) < EXACT
        assert abs(token[i] - spectra.operator_norm(one.token)) < EXACT


def test_path_quantiles_of_matched_noise():
    F, s = fresh("olmo2")
    noise = relaxed.gumbel(40, V, generator=seeded(3))
    rows = token_path.path_quantiles(F, s, noise, taus=(2.0, 0.3))
    ways = token_path.relaxations(noise)
    assert ways["Gumbel-softmax"]["noise"] is ways["straight-through"]["noise"] is noise
    found = {(r["way"], r["tau"], r["path"]): r for r in rows}
    assert len(rows) == len(found) == 3 * 2 * 2
    _, token = token_path.path_norms(F, s, tau=0.3, noise=noise)
    row = found["Gumbel-softmax", 0.3, "token"]
    assert [row["low"], row["median"], row["high"]] == pytest.approx(
        token.quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    )
    hot, cold = (found["straight-through", tau, "attention"] for tau in (2.0, 0.3))
    assert hot["median"] == pytest.approx(cold["median"], abs=1e-12)  # argmax(z + noise) knows no temperature
    assert found["no noise", 2.0, "token"]["low"] == found["no noise", 2.0, "token"]["high"]


@pytest.mark.parametrize("tau", [2.0, 0.5])
@pytest.mark.parametrize("noisy", [False, True])
def test_relaxed_jacobian_against_finite_differences(tau, noisy):
    F, s = fresh("olmo2")
    noise = relaxed.gumbel(1, V, generator=seeded(3)) if noisy else torch.zeros(1, V, dtype=torch.float64)
    whole = token_path.relaxed_jacobian(F, s, scale=1.3, tau=tau, noise=noise)
    u = torch.randn(s.shape, generator=seeded(4), dtype=torch.float64)
    kept, h = F.kept(s.shape[1]), 1e-5

    def step(x):
        p = ((1.3 * F.logits(x) + noise) / tau).softmax(-1)
        return F.advance(x, p @ F.embeddings)[0, kept:]

    assert ((step(s + h * u) - step(s - h * u)) / (2 * h) - whole @ u[0]).abs().max() < 1e-7


@pytest.mark.parametrize("tau", [1.0, 0.4])
@pytest.mark.parametrize("name", ["olmo2", "gpt2", "gru"])
def test_a_path_through_the_token_is_at_most_its_entropy_in_bits_times_the_worst_coin(name, tau):
    """At any policy, the other factors held; a fair coin between the worst two tokens attains it."""
    found = token_path.paths(*fresh(name), tau=tau)
    coin, reached = token_path.worst_coin(found), []
    policies = (6 * torch.randn(200, V, generator=seeded(3), dtype=torch.float64)).softmax(-1)
    pairs = [
        torch.eye(V, dtype=torch.float64)[list(vw)].mean(0) for vw in itertools.combinations(range(V), 2)
    ]
    for p in [*policies, *pairs]:
        token = dataclasses.replace(found, soft=p).token
        bits = torch.special.entr(p).sum().item() / math.log(2)
        reached.append(spectra.operator_norm(token) / (bits * coin))
    assert max(reached) == pytest.approx(1.0, rel=EXACT)
    assert max(reached[:200]) < 1.0


def test_a_state_that_is_not_read_has_jacobian_zero():
    found = token_path.paths(*fresh("bigram"))
    assert found.attention.shape == (6, 6)
    assert not found.attention.any()
    assert found.token.any()


@pytest.mark.parametrize("name", ["olmo2", "gpt2", "gru"])
def test_every_link_of_the_chain_only_adds(name):
    F, s = fresh(name)
    found = token_path.paths(F, s)
    steps = list(token_path.chain(found).values())
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(steps))
    assert abs(steps[0] - float(torch.linalg.svdvals(found.token)[0])) < 1e-9


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_the_constant_of_21_gives_the_last_link_of_the_chain(tau):
    found = token_path.paths(*fresh("olmo2"), tau=tau)
    H = torch.special.entr(found.soft).sum()
    bound = token_path.constant(found) * float(H) / math.log(V)
    assert bound == pytest.approx(token_path.chain(found)["entropy"], rel=1e-12)


@pytest.mark.parametrize("name", ["olmo2", "llama", "gpt2", "gru", "bigram"])
def test_norms_of_matrices_that_are_not_formed_are_those_of_the_matrices(name, monkeypatch):
    """The wide route: Lanczos on products with vectors, and columns, against dense singular values."""
    F, s = fresh(name)
    noise, names = (
        relaxed.gumbel(3, V, generator=seeded(3)),
        ("attention_norm", "attention_new_norm", "advance_norm", "token_norm"),
    )

    def everything():
        found = token_path.paths(F, s, scale=1.3, tau=0.7)
        pair = token_path.path_norms(F, s, scale=1.3, tau=0.7, noise=noise)
        numbers = [getattr(found, name) for name in names] + [x for row in pair for x in row.tolist()]
        return found.formed, [*numbers, token_path.worst_coin(found), *token_path.chain(found).values()]

    formed, dense = everything()
    monkeypatch.setattr(paths, "FORMED", 0)
    not_formed, wide = everything()
    assert (formed, not_formed) == (True, False)
    assert wide == pytest.approx(dense, rel=1e-6, abs=1e-12)


def test_the_worst_coin_among_the_likeliest_tokens():
    found = token_path.paths(*fresh("olmo2"))
    likely = found.soft.argsort(descending=True)[:3]
    pairs = list(itertools.combinations(likely.tolist(), 2))
    moved = (found.advance @ found.embed).T
    by_hand = max(
        float((moved[v] - moved[w]).norm() * (found.head[v] - found.head[w]).norm()) / 4 for v, w in pairs
    )
    assert token_path.worst_coin(found, among=3) == pytest.approx(by_hand, rel=1e-6)
    assert token_path.worst_coin(found, among=V) == token_path.worst_coin(found)


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
