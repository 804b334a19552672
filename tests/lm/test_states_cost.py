"""The passes behind a costate leave out what nobody reads, and lose nothing by it."""

import pytest
import torch

from replicate.ladder.pretrain import tiny_olmo2
from replicate.lm.states import answer_pass, pull_back


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    return tiny_olmo2(layers=3, hidden=32, heads=2, context=24, vocab=60, generator=generator).double().eval()


@pytest.mark.parametrize("samples", [1, 3])
def test_pull_back_from_the_embeddings_is_plain_autograd(model, samples):
    """The same gradients as the untouched model's, to float64's round-off of sums of some hundred terms."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(60, (4, 11), generator=generator)
    costates = torch.randn(samples, 4, 32, generator=generator, dtype=torch.float64)
    found = pull_back(answer_pass(model, tokens, layer=0), costates)
    state = model.get_input_embeddings()(tokens).detach().requires_grad_()
    final = model.model(inputs_embeds=state, use_cache=False).last_hidden_state[:, -1]
    for costate, mine in zip(costates, found, strict=True):
        (expected,) = torch.autograd.grad(final, state, costate, retain_graph=True)
        torch.testing.assert_close(
            mine, expected.flatten(1), rtol=1e-11, atol=1e-11 * expected.abs().max().item()
        )


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_logits_are_the_models(model, layer):
    """At every layer the pass gives the model's own logits at the answer position."""
    tokens = torch.randint(60, (4, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits[:, -1]
    torch.testing.assert_close(
        answer_pass(model, tokens, layer=layer).logits, expected, rtol=1e-11, atol=1e-11
    )


def test_the_last_block_works_on_the_answer_position_alone(model):
    """Its MLP sees one position, the others' see all; and afterwards the model is what it was."""
    tokens = torch.randint(60, (4, 11), generator=torch.Generator().manual_seed(3))
    seen = []
    hooks = [
        b.mlp.register_forward_hook(lambda _, __, out: seen.append(out.shape[1])) for b in model.model.layers
    ]
    answer_pass(model, tokens, layer=0)
    assert seen == [11, 11, 1]
    seen.clear()
    model(input_ids=tokens, use_cache=False)
    assert seen == [11, 11, 11]
    for hook in hooks:
        hook.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
