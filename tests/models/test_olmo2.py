"""The written-out passes of OLMo-2 against the library's forward pass, autograd and finite differences."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from replicate.impact.measured import components
from replicate.lm.costate import credit_matrix, layer_costates
from replicate.models import olmo2
from replicate.models.answer import answer_pass, pull_back
from replicate.models.fresh import tiny_model
from replicate.models.hooks import FINAL
from replicate.models.precision import full_precision

V, P, T, LAYERS = 20, 4, 6, 3
EXACT = 1e-10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(*, head_dim: int | None = None, seed: int = 0):
    """A model whose norm scales are not one and whose norms feel their eps, and prompts."""
    g = seeded(seed)
    model = tiny_model("olmo2", layers=LAYERS, heads=2, head_dim=head_dim, vocab=V, generator=g)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
    return model, torch.randint(V, (P, T), generator=g)


def final_states(model, embedded):
    """The final state at every position by the library's own modules, in float64."""
    with full_precision():
        return model.model(inputs_embeds=embedded).last_hidden_state


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head_dim", [None, 2])
def test_forward_is_the_librarys(attention, head_dim):
    model, tokens = case(head_dim=head_dim)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        whole = final_states(model, model.get_input_embeddings()(tokens))
    for read in (1, 3, T):
        for start in (*range(LAYERS + 1), FINAL):
            tape = olmo2.forward(model, tokens, start=start, read=read)
            assert (tape.final - whole[:, -read:]).abs().max() < EXACT


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("read", [1, 2, T])
@pytest.mark.parametrize("head_dim", [None, 2])
def test_every_layers_costate_is_autograds(samples, read, head_dim):
    model, tokens = case(head_dim=head_dim)
    cotangents = torch.randn(samples, P, read, 16, generator=seeded(1), dtype=torch.float64)
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in model.model.layers]
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    final = final_states(model, embedded)[:, -read:]
    for hook in hooks:
        hook.remove()
    states = [embedded, *seen]
    tape = olmo2.forward(model, tokens, read=read)
    found = dict(olmo2.pull_back(tape, cotangents))
    assert sorted(found) == list(range(LAYERS + 1))
    for layer, costates in found.items():
        positions = costates.shape[2]
        for cotangent, costate in zip(cotangents, costates, strict=True):
            (wanted,) = torch.autograd.grad(final, states[layer], cotangent, retain_graph=True)
            assert (wanted[:, -positions:] - costate).abs().max() < EXACT
            assert not wanted[:, : T - positions].any()  # what is not given is zero
    assert found[0].norm() > 1e-2


def test_costates_are_slopes_of_finite_differences():
    model, tokens = case()
    e = model.get_input_embeddings()(tokens).detach()
    u, w = (torch.randn(e.shape, generator=seeded(s), dtype=torch.float64) for s in (2, 3))

    def f(h):
        with torch.no_grad():
            return (final_states(model, e + h * u)[:, -1] * w[:, -1]).sum()

    h = 2e-4
    slope = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    *_, (_, costate) = olmo2.pull_back(olmo2.forward(model, tokens), w[None, :, -1:])
    torch.testing.assert_close((costate[0] * u).sum(), slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("error", ["norm without projection", "rotation not undone", "norm scale left out"])
def test_planted_errors_are_rejected(error, monkeypatch):
    model, tokens = case()
    cotangents = torch.randn(1, P, 1, 16, generator=seeded(1), dtype=torch.float64)
    tape = olmo2.forward(model, tokens)
    right = dict(olmo2.pull_back(tape, cotangents))[0]
    rotate, adjoint = olmo2._rotate, olmo2.norm_adjoint
    if error == "norm without projection":
        monkeypatch.setattr(olmo2, "norm_adjoint", lambda b, n: n.rate[:, None] * (b * n.weight))
    elif error == "rotation not undone":
        monkeypatch.setattr(olmo2, "_rotate", lambda x, cos, sin: rotate(x, cos, -sin))
    else:
        monkeypatch.setattr(
            olmo2,
            "norm_adjoint",
            lambda b, n: adjoint(b, olmo2.Normed(n.unit, n.rate, torch.ones_like(n.weight))),
        )
    wrong = dict(olmo2.pull_back(tape, cotangents))[0]
    assert (wrong - right).norm() > 1e-3 * right.norm()


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_answer_passes_agree_by_hand_and_by_autograd(layer):
    model, tokens = case()
    cotangents = torch.randn(5, P, 16, generator=seeded(4), dtype=torch.float64)
    with full_precision():
        graph = answer_pass(model, tokens, layer=layer, by_hand=False)
        wanted = torch.cat([pull_back(graph, one[None]) for one in cotangents])
    written = answer_pass(model, tokens, layer=layer)
    assert written.tape is not None
    assert graph.tape is None
    for name in ("final", "logits", "state"):
        assert getattr(written, name).shape == getattr(graph, name).shape
        assert (getattr(written, name) - getattr(graph, name)).abs().max() < EXACT
    assert written.state.shape == (P, T, 16)
    assert (pull_back(written, cotangents) - wanted).abs().max() < EXACT
    before = pull_back(written, cotangents).unflatten(2, (T, 16))[:, :, :-1]
    assert (before.norm() > 1e-3) == (layer < LAYERS)  # nothing reads the last block's output there


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_last_blocks_output_is_the_final_state_before_its_norm(by_hand):
    model, tokens = case()
    cotangent = torch.randn(1, P, 16, generator=seeded(4), dtype=torch.float64)
    with full_precision():
        raw, final = (answer_pass(model, tokens, layer=k, by_hand=by_hand) for k in (LAYERS, FINAL))
        leaf = raw.state.detach().requires_grad_()
        normed = model.model.norm(leaf)[:, -1]
        (through,) = torch.autograd.grad(normed, leaf, pull_back(final, cotangent)[0])
        found = pull_back(raw, cotangent)[0]
    assert final.state is None
    assert (normed - final.final).abs().max() < EXACT
    assert (found.unflatten(1, (T, 16)) - through).abs().max() < EXACT
    assert (found.unflatten(1, (T, 16))[:, -1] - cotangent[0]).norm() > 0.1  # the norm is not the identity


@pytest.mark.parametrize("layers", [None, [FINAL], [3, 1], [0], [3], [FINAL, 3]])
@pytest.mark.parametrize("length", [1, 3])
def test_layer_costates_agree_by_hand_and_by_autograd(layers, length):
    model, prompts = case()
    completions = torch.randint(V, (P, length), generator=seeded(5))
    weights = torch.randn(P, length, generator=seeded(6), dtype=torch.float64)
    both = [
        layer_costates(model, prompts, completions, weights, vocab=V, layers=layers, by_hand=way)
        for way in (True, False)
    ]
    assert both[0].shape == both[1].shape
    assert (both[0] - both[1]).abs().max() < EXACT


@pytest.mark.parametrize("layer", [*range(LAYERS + 1), FINAL])
def test_a_layer_is_the_same_by_every_route_to_its_costates(layer):
    """With one answer token Def. 2 is a score at the final state, pulled back."""
    model, prompts = case()
    tokens, advantages = (
        torch.randint(V, (P,), generator=seeded(5)),
        torch.rand(P, generator=seeded(6)).double(),
    )
    (wanted,) = layer_costates(model, prompts, tokens[:, None], advantages, vocab=V, layers=[layer])
    answer = answer_pass(model, prompts, layer=layer)
    off = torch.nn.functional.one_hot(tokens, V) - answer.logits.softmax(-1)
    found = pull_back(answer, (advantages[:, None] * off @ answer.head)[None])[0].unflatten(1, (-1, 16))
    assert (found - wanted[:, -found.shape[1] :]).abs().max() < EXACT
    assert found.shape[1] == (1 if layer == FINAL else T)


def test_half_precision_keeps_norms_in_float32():
    model, tokens = case()
    cotangents = torch.randn(2, P, 1, 16, generator=seeded(7), dtype=torch.float64)
    exact = dict(olmo2.pull_back(olmo2.forward(model, tokens), cotangents))[0]
    half = model.bfloat16()
    rough = dict(olmo2.pull_back(olmo2.forward(half, tokens), cotangents.bfloat16()))[0]
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact).norm() < 0.1 * exact.norm()


def test_only_a_plain_olmo2_is_written_out():
    model, tokens = case()
    assert olmo2.supports(model)
    assert not olmo2.supports(tiny_model("llama", vocab=V, generator=seeded()))
    assert not olmo2.supports(tiny_model("olmo2", heads=4, kv_heads=2, vocab=V, generator=seeded()))

    class Adapted(nn.Linear):
        """Stands for whatever a library puts in the place of a linear map."""

    model.model.layers[1].mlp.up_proj = Adapted(16, 32, bias=False).double()
    assert not olmo2.supports(model)
    assert answer_pass(model, tokens, layer=0).tape is None
    with pytest.raises(ValueError, match="by_hand: expected a plain OLMo-2"):
        answer_pass(model, tokens, layer=0, by_hand=True)
    dropping, _ = case()
    dropping.config.attention_dropout = 0.1
    assert olmo2.supports(dropping)
    assert not olmo2.supports(dropping.train())


@pytest.mark.parametrize("layer", [LAYERS + 1, -2, -LAYERS - 1])
def test_layers_that_there_are_not_are_refused_everywhere(layer):
    model, tokens = case()
    weights = torch.ones(P, 2, dtype=torch.float64)
    expected = r"layer: expected 0 to 3 or -1, the final state \(this model has 3 blocks\), got " + str(layer)
    for refuse in (
        lambda: olmo2.forward(model, tokens, start=layer),
        lambda: answer_pass(model, tokens, layer=layer, by_hand=True),
        lambda: answer_pass(model, tokens, layer=layer, by_hand=False),
        lambda: layer_costates(model, tokens, tokens[:, :2], weights, vocab=V, layers=[0, layer]),
        lambda: credit_matrix(model, tokens, tokens[:, :2], weights, vocab=V, layer=layer),
        lambda: components(model, tokens, tokens[:, 0], layer=layer, generator=seeded()),
    ):
        with pytest.raises(ValueError, match=f"^{expected}$"):
            refuse()


def test_bad_numbers_of_positions_are_refused():
    model, tokens = case()
    with pytest.raises(ValueError, match="read: expected 1 to 6 positions, got 7"):
        olmo2.forward(model, tokens, read=7)


def test_a_measurement_takes_less_than_1_7_forward_passes_of_arithmetic():
    # The ladder's shape. Multiplications and additions are counted, not timed: seconds differ from machine to machine,
    # and from hour to hour; they are in benchmarks/measurement.py.
    model = tiny_model(
        "olmo2", layers=3, hidden=64, heads=4, vocab=288, attention="sdpa", generator=seeded()
    ).float()
    tokens = torch.randint(288, (256, 22), generator=seeded(1))
    cotangent = torch.randn(1, 256, 64, generator=seeded(2))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(input_ids=tokens, logits_to_keep=1, use_cache=False)
    with FlopCounterMode(display=False) as measured:
        pull_back(answer_pass(model, tokens, layer=0), cotangent)
    assert 1.5 < measured.get_total_flops() / forward.get_total_flops() < 1.7

    # The last block at every position is what the count would show if nothing were left out.
    with FlopCounterMode(display=False) as whole:
        tape = olmo2.forward(model, tokens, read=tokens.shape[1])
        list(olmo2.pull_back(tape, cotangent[:, :, None].expand(-1, -1, tokens.shape[1], -1)))
    assert whole.get_total_flops() / forward.get_total_flops() > 1.9
