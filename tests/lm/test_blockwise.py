"""Theorem 1 block by block: a bound in every case, the same in all units, its norms found in two ways."""

from dataclasses import astuple

import pytest
import torch

from replicate.lm import blockwise, paths, recurrence, relaxed, theorem_one, token_path
from replicate.models.fresh import rescaled

V, T = 4, 4
WIDTH = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(seed: int = 0, family: str = "olmo2", by: float = 1.0):
    """A model after its prompt and what each last token is worth; the same draws whatever ``by``."""
    g = seeded(seed)
    begun = blockwise.fresh_prompt(family, vocab=V, rescale=by, generator=g)
    worth = torch.randn(V, generator=g, dtype=torch.float64)
    return begun, lambda soft: soft[:, -1] @ worth


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
@pytest.mark.parametrize("horizon", [1, 2, 3, 4])
def test_the_bound_holds_at_the_embeddings(family, horizon):
    found = blockwise.sides(*start(3, family), horizon=horizon)
    assert found.error <= found.sharp * (1 + 1e-9)
    assert found.sharp <= found.entropy * (1 + 1e-9)
    assert (found.error == 0) == (horizon == 1)
    assert found.final == pytest.approx(
        float(horizon > 1)
    )  # the token is the only way on from the final state
    assert (found.cache == 0) == (horizon <= 2)


def test_right_side_by_hand_and_with_a_term_left_out():
    attention, token, later = [(2.0, 3.0), (5.0, 7.0)], [(0.1, 0.2), (0.3, 0.4)], [(1.0, 2.0), (3.0, 4.0)]
    second = (5.0 * 0 + 7.0 * 0, 0.3 * 3 + 0.4 * 4)
    first = (2.0 * second[0] + 3.0 * second[1], 0.1 * 1 + 0.2 * 2)
    assert blockwise.right_side(attention, token, later) == pytest.approx(first)
    assert blockwise.right_side([], [], []) == (0.0, 0.0)


def test_without_what_travels_from_the_final_state_through_the_cache_the_right_side_fails():
    """One gap, two steps back: all of it comes to the cache through the new final state's row of J."""
    begun, reward = start(1, "gpt2")
    how = {"horizon": 3, "scale": torch.tensor([200.0, 1.0, 1.0], dtype=torch.float64)}
    lam, cut = (relaxed.relaxed_costates(begun.F, begun.state, reward, cut=c, **how) for c in (False, True))
    norms = [blockwise.block_norms(p, WIDTH) for p in token_path.paths_along(begun.F, begun.state, **how)]
    lengths = [blockwise.block_lengths(x[0], WIDTH) for x in lam[1:]]
    gap = blockwise.block_lengths((cut[0] - lam[0])[0], WIDTH)
    attention, token = [n["attention"] for n in norms], [n["sharp"] for n in norms]
    right = blockwise.right_side(attention, token, lengths)
    assert gap[0] <= right[0] * (1 + 1e-9)
    wrong = blockwise.right_side([(kept, 0.0) for kept, _ in attention], token, lengths)
    assert gap[0] > 2 * wrong[0]


@pytest.mark.parametrize("by", [1 / 128, 128.0])
def test_nothing_hangs_on_the_units_of_the_final_state(by):
    before, after = (blockwise.sides(*start(2, by=x), horizon=T) for x in (1.0, by))
    assert astuple(after) == pytest.approx(astuple(before), rel=1e-9)
    (one, reward), (other, _) = start(2), start(2, by=by)
    whole = [theorem_one.both_sides(x.F, x.state, reward, horizon=T) for x in (one, other)]
    ratios = [float(x.entropy_bound[0] / x.error[0]) for x in whole]
    assert abs(ratios[1] / ratios[0] - 1) > 0.5  # norms of the whole state do


def test_a_tied_head_is_left_alone():
    begun, _ = start(4, "gpt2", by=128.0)
    assert torch.equal(begun.state, start(4, "gpt2")[0].state)
    with pytest.raises(ValueError, match="tied"):
        rescaled(begun.model, by=2.0)


def test_norms_by_products_are_those_of_the_formed_matrices(monkeypatch):
    begun, _ = start(5)
    found = blockwise.block_norms(paths.paths(begun.F, begun.state), WIDTH)
    column = paths.paths(begun.F, begun.state).attention[:-WIDTH]
    assert found["attention"][0] == pytest.approx(
        float((1 + torch.linalg.matrix_norm(column, 2) ** 2).sqrt())
    )
    monkeypatch.setattr(paths, "FORMED", 0)
    assert not paths.paths(begun.F, begun.state).formed
    products = blockwise.block_norms(paths.paths(begun.F, begun.state), WIDTH)
    for name, pair in found.items():
        assert products[name] == pytest.approx(pair, rel=1e-6)


def test_costates_at_the_embeddings_are_slopes_of_the_rollout():
    begun, reward = start(6)
    lam = relaxed.relaxed_costates(begun.F, begun.state, reward, horizon=T)[0]
    back = blockwise.pulled_back(begun.model, begun.prompt, torch.cat([lam, -3 * lam]))
    assert (back[0] - lam[0] @ begun.view).abs().max() < 1e-12
    assert (back[1] + 3 * back[0]).abs().max() < 1e-12
    e = begun.model.get_input_embeddings()(begun.prompt).detach()
    u = torch.randn(e.shape, generator=seeded(7), dtype=torch.float64)

    def value(h):
        state = recurrence.read_prompt(begun.model, e + h * u)
        return float(relaxed.relaxed_value(begun.F, state.detach(), reward, horizon=T))

    h = 1e-4
    slope = (8 * (value(h) - value(-h)) - value(2 * h) + value(-2 * h)) / (12 * h)
    assert float(back[0] @ u.flatten()) == pytest.approx(slope, rel=1e-7)
    norms = blockwise.prompt_norms(begun.model, begun.prompt, WIDTH)
    for norm, part in zip(norms, (begun.view[:-WIDTH], begun.view[-WIDTH:]), strict=True):
        assert norm == pytest.approx(float(torch.linalg.matrix_norm(part, 2)), rel=1e-6)


def test_distance_of_what_is_sent_for_an_answer(monkeypatch):
    begun, _ = start(8)
    R = torch.eye(V, dtype=torch.float64)[2].repeat(V)  # 1[o_2 = 2]
    g = theorem_one.discrete_gradients(begun.F, begun.state, R, scales=torch.ones(1, 2).double())
    lam = relaxed.relaxed_costates(begun.F, begun.state, lambda soft: soft[:, -1, 2], horizon=2)[0]
    assert blockwise.sent_distance(begun, 2) == pytest.approx(
        float(((g - lam) @ begun.view).norm()), rel=1e-9
    )
    monkeypatch.setattr(blockwise, "ENUMERATED", 10)
    assert blockwise.sent_distance(begun, 2) != blockwise.sent_distance(begun, 2)
