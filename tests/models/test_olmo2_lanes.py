"""Passes written out for all lanes at once, against the library's own over whole sequences, copy by copy."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from replicate.models import olmo2_lanes as lanes_of
from replicate.models.compilation import compile_blocks
from replicate.models.fresh import tiny_model
from replicate.models.precision import full_precision

V, P, G, L, S, LANES, LAYERS, HEADS = 20, 3, 2, 5, 4, 2, 3, 2
EXACT = 1e-10


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(seed=0, head_dim=None):
    """A model whose norm scales are not one and whose norms feel their eps."""
    g = seeded(seed)
    model = tiny_model("olmo2", layers=LAYERS, heads=HEADS, head_dim=head_dim, vocab=V, generator=g)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
    return model


def case(head_dim=None, lanes=LANES):
    """A model, other weights for each lane with a graph, prompts and completions."""
    copies = [dict(plain(seed, head_dim).named_parameters()) for seed in range(lanes)]
    weights = {name: torch.stack([c[name].detach() for c in copies]).requires_grad_() for name in copies[0]}
    prompts = torch.randint(V, (lanes, P, L), generator=seeded(3))
    return plain(0, head_dim), weights, prompts, torch.randint(V, (lanes, P, G, S), generator=seeded(4))


def whole(model, weights, prompts, tokens):
    """Logits behind the prompt and each token: every completion behind its own copy of the prompt, lane by lane."""
    full = torch.cat([prompts[:, :, None].expand(-1, -1, G, -1), tokens], -1)
    logits = []
    for lane, rows in enumerate(full):
        own = {name: weight[lane] for name, weight in weights.items()}
        with full_precision():
            logits.append(functional_call(model, own, kwargs={"input_ids": rows.flatten(0, 1)}).logits)
    return torch.stack(logits).unflatten(1, (P, G))[:, :, :, L - 1 :]


@pytest.mark.parametrize(("head_dim", "together"), [(None, 2048), (6, 2048), (None, 1)])
def test_values_and_gradients_are_those_of_whole_sequences(head_dim, together, monkeypatch):
    """Behind the prompt and behind every token, in every lane, whatever the heads' size; gradients of all weights."""
    monkeypatch.setattr(lanes_of, "TOGETHER", together)
    model, weights, prompts, tokens = case(head_dim)
    net = lanes_of.net_of(model, weights, vocab=V)
    first, cache = lanes_of.prompt_pass(net, prompts)
    rest = lanes_of.score(net, cache, tokens)
    expected = whole(model, weights, prompts, tokens)
    found = torch.cat([first[:, :, None, None].expand(-1, -1, G, 1, -1), rest], 3)
    assert (found - expected).abs().max() < EXACT
    signs = torch.randn(expected.shape, generator=seeded(5), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * signs).sum(), list(weights.values())) for x in (found, expected))
    for name, a, b in zip(weights, ours, theirs, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, b.abs().max()), name
    # It would be seen if a completion stood in another's place.
    other = lanes_of.score(net, cache, tokens.flip(2))
    assert (other - rest).abs().max() > 1e-3


def test_steps_one_by_one_are_the_scoring_pass():
    """And leave no graph, and the prompts' keys and values alone."""
    model, weights, prompts, tokens = case()
    net = lanes_of.net_of(model, weights, vocab=V)
    _, cache = lanes_of.prompt_pass(net, prompts)
    before = [keys.clone() for keys, _ in cache]
    step = lanes_of.steps(net, cache, G, S)
    found = torch.stack([step(tokens[..., t]) for t in range(S)], 3)
    assert not found.requires_grad
    assert (found - lanes_of.score(net, cache, tokens)).abs().max() < EXACT
    assert all(torch.equal(keys, kept) for (keys, _), kept in zip(cache, before, strict=True))


def test_a_lane_has_the_same_bits_in_any_company():
    model, weights, prompts, tokens = case(lanes=3)
    found = []
    for company in ([0, 1, 2], [1, 1]):
        few = {name: w[company].detach().float() for name, w in weights.items()}
        net = lanes_of.net_of(model.float(), few, vocab=V)
        first, cache = lanes_of.prompt_pass(net, prompts[company])
        step = lanes_of.steps(net, cache, G, S)
        lane = company.index(1)
        found.append(
            [
                first[lane],
                step(tokens[company][..., 0])[lane],
                lanes_of.score(net, cache, tokens[company])[lane],
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_is_computed_that_nobody_reads():
    """Products of matrices of a scoring pass: the weights' over the completions' tokens, and of attention each
    completion's own scores and those of its prompt; no other completion's. Behind the prompts the last block computes
    keys, values and queries everywhere and the rest at the last position."""
    model, weights, prompts, tokens = case(lanes=2)
    net = lanes_of.net_of(model, weights, vocab=V).detach()
    d, f, rows = model.config.hidden_size, model.config.intermediate_size, 2 * P * G * S

    def counted(work):
        with FlopCounterMode(display=False) as counter:
            found = work()
        return counter.get_total_flops(), found

    block, head = 4 * d * d + 3 * d * f, V * d
    spent, (_, cache) = counted(lambda: lanes_of.prompt_pass(net, prompts))
    everywhere, last = 2 * P * L, 2 * P
    dense = everywhere * ((LAYERS - 1) * block + 3 * d * d) + last * (block - 3 * d * d + head)
    assert spent == 2 * dense + 4 * d * (everywhere * L * (LAYERS - 1) + last * L)
    spent, _ = counted(lambda: lanes_of.score(net, cache, tokens))
    assert spent == 2 * rows * (LAYERS * block + head) + 4 * d * LAYERS * rows * (L + S)


def test_norm_and_gate_go_back_by_finite_differences():
    draw = {"generator": seeded(), "dtype": torch.float64}
    x = torch.randn(2, 3, 4, **draw).requires_grad_()
    weight = torch.rand(2, 1, 4, **draw).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: lanes_of._norm(a, b, 0.1), (x, weight))
    assert torch.autograd.gradcheck(lanes_of._gated, (x, x.detach().flip(1).requires_grad_()))


def biased(model):
    model.config.attention_bias = True


def tied(model):
    model.config.tie_word_embeddings = True


def uneven(model):
    model.model.norm.variance_epsilon = 0.2


def adapted(model):
    model.lm_head = nn.Sequential(model.lm_head)


@pytest.mark.parametrize("change", [biased, tied, uneven, adapted, compile_blocks, nn.Module.bfloat16])
def test_another_model_is_not_served(change):
    model = plain()
    assert lanes_of.supports(model, torch.float64)
    change(model)
    assert not lanes_of.supports(model, model.dtype)


def test_other_families_and_passes_in_another_precision_are_not_served():
    assert not lanes_of.supports(plain(), torch.bfloat16)
    llama = tiny_model("llama", layers=1, vocab=V, generator=seeded())
    assert not lanes_of.supports(llama, llama.dtype)
