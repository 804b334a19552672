"""Cross-position Jacobians: closed form against autograd, ranks of Prop. 3, effective ranks."""

import pytest
import torch

from replicate.lm import attention, shapes, spectra
from replicate.models.fresh import tiny_model

EXACT = 1e-10
ZOO = {
    "olmo2": {"family": "olmo2"},
    "olmo2, narrow": {"family": "olmo2", "head_dim": 2},
    "olmo2, wide": {"family": "olmo2", "head_dim": 12},
    "llama, one key head": {"family": "llama", "heads": 4, "kv_heads": 1},
    "gpt2": {"family": "gpt2"},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(name: str = "olmo2", **shape):
    g = seeded()
    model = tiny_model(vocab=20, generator=g, **(ZOO.get(name, {}) | shape))
    return model, torch.randperm(20, generator=g)[:6]


@pytest.mark.parametrize("part", ["full", "value", "score"])
@pytest.mark.parametrize("name", ZOO)
def test_closed_form_equals_autograd(name, part):
    model, tokens = fresh(name)
    for layer, block in enumerate(attention.anatomy(model, tokens), start=1):
        quick = attention.layer_jacobians(block, part=part)
        slow = attention.layer_jacobians_by_autograd(model, tokens, layer=layer, part=part)
        assert (quick - slow).abs().max() < EXACT
        assert quick.abs().max() > 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_whole_model_equals_autograd(name):
    model, tokens = fresh(name, layers=3)
    quick, slow = (
        attention.model_jacobians(model, tokens),
        attention.model_jacobians_by_autograd(model, tokens),
    )
    assert (quick - slow).abs().max() < EXACT


def test_whole_model_over_more_positions_than_a_chunk():
    model, _ = fresh(layers=3)
    tokens = torch.randint(20, (11,), generator=seeded(1))
    quick, slow = (
        attention.model_jacobians(model, tokens),
        attention.model_jacobians_by_autograd(model, tokens),
    )
    assert (quick - slow).abs().max() < EXACT


def test_heads_project_to_the_sublayer_and_the_score_term_has_rank_one():
    model, tokens = fresh()
    block = list(attention.anatomy(model, tokens))[1]
    heads = attention.head_jacobians(block)
    project = block.project.unflatten(1, (len(heads), -1))
    assert (
        torch.einsum("ohc,htjci->tjoi", project, heads) - attention.layer_jacobians(block)
    ).abs().max() < EXACT
    score = attention.head_jacobians(block, part="score")
    assert spectra.numerical_rank(score[:, 4, 1]).tolist() == [1, 1]
    assert spectra.numerical_rank(heads[:, 4, 1]).max() > 1
    future = torch.triu_indices(6, 6, 1)
    assert heads[:, future[0], future[1]].abs().max() == 0


def test_jacobian_against_finite_differences():
    model, tokens = fresh()
    whole = attention.model_jacobians(model, tokens)
    from replicate.models.hooks import hidden_states
    from replicate.models.precision import full_precision

    e = model.get_input_embeddings()
    rows, h = [], 1e-5
    original = e.weight.detach().clone()
    for i in range(whole.shape[3]):
        outs = []
        for sign in (1, -1):
            with torch.no_grad():
                e.weight.copy_(original)
                e.weight[tokens[1], i] += sign * h
            with full_precision():
                outs.append(hidden_states(model, tokens[None])[0][-2][0, 4].detach())
        rows.append((outs[0] - outs[1]) / (2 * h))
    with torch.no_grad():
        e.weight.copy_(original)
    assert (torch.stack(rows, 1) - whole[4, 1]).abs().max() < 1e-6


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (2, 2), (3, 2), (2, 4), (2, 8), (4, 6)])
def test_ranks_meet_the_bounds_of_prop_3(layers, heads, head_dim):
    model, tokens = fresh(layers=layers, hidden=16, heads=heads, head_dim=head_dim)
    shape = shapes.shape_of(model)
    assert shape.layer_bound == min(16, heads * head_dim)
    for block in attention.anatomy(model, tokens):
        found = spectra.numerical_rank(attention.earlier(attention.layer_jacobians(block)))
        assert found.max() == shape.layer_bound
    total = spectra.numerical_rank(attention.earlier(attention.model_jacobians(model, tokens)))
    assert total.max() == shape.total_bound


def test_shared_key_heads_bound_the_rank_from_the_input_side():
    model, tokens = fresh("llama, one key head", hidden=32, head_dim=4, heads=8, kv_heads=2)
    shape = shapes.shape_of(model)
    assert (shape.layer_bound, shape.input_bound) == (32, 16)
    block = list(attention.anatomy(model, tokens))[1]
    assert spectra.numerical_rank(attention.earlier(attention.layer_jacobians(block))).max() == 16
    value = spectra.numerical_rank(attention.earlier(attention.layer_jacobians(block, part="value")))
    assert value.max() == 8


def test_value_path_of_olmo2_has_the_effective_rank_of_its_weights():
    model, tokens = fresh()
    block = next(attention.anatomy(model, tokens))
    value = attention.head_jacobians(block, part="value")
    for t in (3, 5):
        stacked = value[:, t, :t].permute(0, 2, 1, 3).flatten(2)
        expected = spectra.participation_ratio(
            model.model.layers[0].self_attn.v_proj.weight.unflatten(0, (2, -1))
        )
        torch.testing.assert_close(spectra.participation_ratio(stacked), expected.detach())


def test_bad_input_is_named():
    model, tokens = fresh()
    block = next(attention.anatomy(model, tokens))
    with pytest.raises(ValueError, match="part: expected one of"):
        attention.layer_jacobians(block, part="values")
    for layer in (0, 3):
        with pytest.raises(ValueError, match=f"layer: expected 1 to 2 .*got {layer}"):
            attention.layer_jacobians_by_autograd(model, tokens, layer=layer)
    fused = tiny_model("olmo2", vocab=20, attention="sdpa", generator=seeded())
    for call in (attention.anatomy, attention.model_jacobians, attention.model_jacobians_by_autograd):
        with pytest.raises(ValueError, match="needs attn_implementation='eager', got 'sdpa'"):
            call(fused, tokens)
    with pytest.raises(ValueError, match="family: expected one of"):
        tiny_model("mamba", generator=seeded())
    with pytest.raises(ValueError, match="head_dim: expected an even number"):
        tiny_model("olmo2", head_dim=3, generator=seeded())
