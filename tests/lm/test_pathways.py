"""Prop. 3 measured: ranks and gaps, the proof's terms, effective ranks, sizes of terms."""

import numpy as np
import pytest
import torch

from replicate.lm import attention, pathways, shapes, spectra
from replicate.models.fresh import tiny_model

EXACT = 1e-10


def fresh(family: str = "olmo2", *, seed: int = 0, length: int = 6, epsilon: float | None = 1.0, **shape):
    g = torch.Generator().manual_seed(seed)
    model = tiny_model(family, vocab=20, generator=g, **shape)
    if epsilon is not None and family != "gpt2":
        pathways.with_norm_epsilon(model, epsilon)
    return model, torch.randperm(20, generator=g)[:length]


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
def test_closed_form_against_autograd_names_layers_and_sees_a_missing_term(family):
    table = pathways.against_autograd(*fresh(family, layers=2))
    assert table["layer"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    assert table["error"].max() < EXACT
    assert table.loc[table["part"] == "full", "planted"].min() > 1e-3
    assert table["planted"].notna().sum() == 2


def test_ranks_of_a_narrow_model_meet_both_bounds_with_a_clean_gap():
    row = pathways.ranks(*fresh(layers=2, hidden=16, heads=1, head_dim=4))
    assert (row["rank"], row["least rank"], row["bound"]) == (4, 4, 4)
    assert (row["total"], row["least total"], row["total bound"]) == (8, 8, 8)
    assert row["total at t"] == 16  # the skip connection joins in
    assert max(row["gap"], row["total gap"]) < 1e-12


@pytest.mark.parametrize("head_dim", [2, 6])
def test_one_head_carries_as_many_directions_as_it_is_wide(head_dim):
    model, tokens = fresh(layers=2, hidden=12, heads=2, head_dim=head_dim)
    found = pathways.head_ranks(model, tokens)
    assert found.tolist() == [[head_dim] * 2] * 2
    block = list(attention.anatomy(model, tokens))[1]
    both = attention.layer_jacobians(block)[-1, 0]
    assert spectra.numerical_rank(both) == 2 * head_dim  # the two heads together reach further


def test_ranks_of_a_full_width_model_are_full_and_have_no_gap():
    row = pathways.ranks(*fresh(layers=1, hidden=8, heads=2))
    assert (row["rank"], row["bound"], row["total"], row["total bound"]) == (8, 8, 8, 8)
    assert np.isnan(row["gap"])
    assert np.isnan(row["total gap"])


def test_a_tolerance_above_the_values_lowers_the_rank():
    model, tokens = fresh(layers=2, hidden=16, heads=1, head_dim=4)
    assert pathways.ranks(model, tokens, rtol=0.9)["total"] < 8


@pytest.mark.parametrize(("layers", "heads", "head_dim"), [(1, 1, 4), (2, 2, 2), (3, 1, 2)])
def test_a_norm_after_the_sublayer_takes_one_direction_a_layer(layers, heads, head_dim):
    model, tokens = fresh(layers=layers, heads=heads, head_dim=head_dim, epsilon=0.0)
    count = layers * (heads * head_dim - 1)
    through = attention.earlier(attention.model_jacobians(model, tokens))
    assert spectra.spectral_gap(through, count) < 1e-11
    pathways.with_norm_epsilon(model, 1.0)
    through = attention.earlier(attention.model_jacobians(model, tokens))
    assert spectra.spectral_gap(through, count) > 1e-3


@pytest.mark.parametrize("family", ["olmo2", "llama"])
def test_layer_terms_add_up_and_each_has_the_rank_of_one_layer(family):
    model, tokens = fresh(family, layers=3, hidden=16, heads=1, head_dim=2)
    terms = pathways.layer_terms(model, tokens)
    whole = attention.model_jacobians_by_autograd(model, tokens)
    assert terms.shape == (3, 6, 6, 16, 16)
    assert (attention.earlier(terms.sum(0)) - attention.earlier(whole)).abs().max() < EXACT
    for term in terms:
        assert spectra.numerical_rank(attention.earlier(term)).max() == 2
    at = torch.arange(6)
    skip = (whole - terms.sum(0))[at, at]  # what is left for j = t: the way along the skip connections
    assert spectra.numerical_rank(skip).min() == 16


def test_layer_terms_are_those_of_the_proof():
    """Term l is dh_t^L/da_t^l times da_t^l/dh_j^0: for the last layer, after x (rows of the last sublayer)."""
    model, tokens = fresh(layers=2)
    first, last = attention.anatomy(model, tokens)
    below = attention.layer_jacobians(first) @ first.below
    input_ = first.after[:, None] @ below
    at = torch.arange(6)
    input_[at, at] += first.skip
    handed = torch.einsum("tiab,ijbc->tjac", attention.layer_jacobians(last) @ last.below, input_)
    expected = last.after[:, None] @ handed
    torch.testing.assert_close(pathways.layer_terms(model, tokens)[1], expected)


def test_path_terms_add_up_and_are_counted_by_a_binomial():
    model, tokens = fresh(layers=3, hidden=16, heads=1, head_dim=2)
    paths = pathways.path_terms(model, tokens, t=5, j=1)
    assert len(paths) == 15  # (4 + 2 choose 2)
    whole = attention.model_jacobians_by_autograd(model, tokens)
    assert (paths.sum(0) - whole[5, 1]).abs().max() < EXACT
    assert spectra.numerical_rank(paths).sum() > 3 * 2
    for t, j in ((1, 1), (6, 0), (2, -1)):
        with pytest.raises(ValueError, match="t, j: expected 0 <= j < t < 6"):
            pathways.path_terms(model, tokens, t=t, j=j)


def test_effective_ranks_are_those_of_each_head_and_position():
    model, _ = fresh(hidden=16, heads=2)
    prompts = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(1))
    table = pathways.effective_ranks(model, prompts, last=2)
    assert len(table) == 2 * 2 * 2 * 2  # prompts, layers, heads, positions
    block = list(attention.anatomy(model, prompts[1]))[1]
    full = (
        block.project[:, 8:] @ attention.head_jacobians(block)[1, 6, :6]
    )  # second layer, second head, last position
    row = table.query("prompt == 1 and layer == 2 and head == 1 and t == 6").iloc[0]
    stacked = torch.cat(list(full), 1)  # [d, 6 d]
    assert abs(row["participation"] - spectra.participation_ratio(stacked)) < EXACT
    assert abs(row["entropy rank"] - spectra.entropy_rank(stacked)) < EXACT
    assert abs(row["breadth"] - spectra.breadth(block.alpha[1, 6, :6])) < EXACT
    assert abs(row["reach"] - spectra.breadth(full.square().sum((1, 2)))) < EXACT
    attend = model.model.layers[1].self_attn
    value_path = attend.o_proj.weight.detach()[:, 8:] @ attend.v_proj.weight.detach()[8:]
    assert abs(row["value only"] - spectra.participation_ratio(value_path)) < EXACT
    for last in (0, 7):
        with pytest.raises(ValueError, match=f"last: expected 1 to 6, got {last}"):
            pathways.effective_ranks(model, prompts, last=last)


@pytest.mark.parametrize("family", ["olmo2", "llama", "gpt2"])
def test_term_sizes_are_the_weight_times_their_factors(family):
    model, _ = fresh(family, hidden=16, heads=2)
    prompts = torch.randint(20, (2, 6), generator=torch.Generator().manual_seed(1))
    table = pathways.term_sizes(model, prompts)
    assert len(table) == 2 * 2 * 2 * 15  # prompts, layers, heads, pairs
    np.testing.assert_allclose(table["value"], table["alpha"] * table["value factor"], rtol=1e-9)
    np.testing.assert_allclose(table["others"], 1 - table["alpha"], rtol=1e-9)
    np.testing.assert_allclose(
        table["score"], table["alpha"] * table["others"] * table["score factor"], rtol=1e-9, atol=1e-15
    )
    assert (table["full"] <= table["value"] + table["score"] + 1e-12).all()
    assert (table["full"] < table["alpha"] * table["constant"]).all()
    assert table.groupby(["prompt", "layer", "head"])["constant"].nunique().max() == 1


def test_term_sizes_name_their_pair():
    model, _ = fresh(hidden=16, heads=2)
    prompts = torch.randint(20, (1, 6), generator=torch.Generator().manual_seed(1))
    row = pathways.term_sizes(model, prompts).query("layer == 2 and head == 1 and t == 4 and j == 2").iloc[0]
    block = list(attention.anatomy(model, prompts[0]))[1]
    for part in attention.PARTS:
        expected = (block.project[:, 8:] @ attention.head_jacobians(block, part=part)[1, 4, 2]).norm()
        assert abs(row[part] - expected) < EXACT
    assert abs(row["alpha"] - block.alpha[1, 4, 2]) < EXACT


def test_norm_epsilon_is_set_everywhere_or_refused():
    model, _ = fresh(layers=2, epsilon=None)
    assert pathways.with_norm_epsilon(model, 0.25) is model
    found = {m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}
    assert found == {0.25}
    with pytest.raises(ValueError, match="epsilon: expected a number >= 0, got -1"):
        pathways.with_norm_epsilon(model, -1.0)
    with pytest.raises(ValueError, match="model: expected RMS norms with a variance_epsilon, got GPT2"):
        pathways.with_norm_epsilon(fresh("gpt2")[0], 0.1)


@pytest.mark.parametrize(("family", "kv_heads"), [("olmo2", 2), ("llama", 1), ("gpt2", None)])
def test_some_layers_and_only_their_attention_are_what_the_whole_has(family, kv_heads):
    model, tokens = fresh(
        family, layers=3, hidden=16, heads=2, **({"kv_heads": kv_heads} if kv_heads else {})
    )
    whole, part = pathways.ranks(model, tokens), pathways.sublayer_ranks(model, tokens)
    assert part == {name: whole[name] for name in part}
    torch.testing.assert_close(
        pathways.head_ranks(model, tokens, layers=[1, 3]), pathways.head_ranks(model, tokens)[[0, 2]]
    )
    prompts = tokens.expand(2, -1)
    for table in (pathways.effective_ranks, pathways.term_sizes):
        everything, two = table(model, prompts), table(model, prompts, layers=[1, 3])
        wanted = everything[everything["layer"] != 2].reset_index(drop=True)
        np.testing.assert_allclose(two.to_numpy(float), wanted.to_numpy(float), rtol=1e-9)
    value_only = pathways.effective_ranks(model, prompts).groupby(["layer", "head"])["value only"].first()
    value_path = spectra.participation_ratio(shapes.value_path_weights(model))
    np.testing.assert_allclose(value_only.to_numpy(), value_path.flatten().numpy(), rtol=1e-9)


@torch.no_grad()
def test_a_heads_own_coordinates_have_no_say():
    """A matrix on a head's values and its inverse on the output projection: same model, same tables."""
    model, tokens = fresh(hidden=16, heads=2)
    prompts = tokens[None]
    before = pathways.effective_ranks(model, prompts), pathways.term_sizes(model, prompts)
    for layer in model.model.layers:
        attend = layer.self_attn
        M = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        attend.v_proj.weight[8:] = M @ attend.v_proj.weight[8:]
        attend.o_proj.weight[:, 8:] = attend.o_proj.weight[:, 8:] @ torch.linalg.inv(M)
    after = pathways.effective_ranks(model, prompts), pathways.term_sizes(model, prompts)
    for x, y in zip(before, after, strict=True):
        y = y.drop(columns="constant", errors="ignore")  # of a bound: it may be tighter or looser
        np.testing.assert_allclose(x[y.columns].to_numpy(float), y.to_numpy(float), rtol=1e-8, atol=1e-12)


def test_a_model_without_known_value_weights_is_refused():
    model, _ = fresh(layers=1)
    del model.model.layers[0].self_attn.v_proj
    with pytest.raises(ValueError, match="model: expected v_proj or c_attn in its attention"):
        shapes.value_weights(model)
