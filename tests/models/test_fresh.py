"""A rescaling that no output sees moves the hidden states behind the final norm, and all that hangs on coordinates."""

import pytest
import torch

from replicate.models.fresh import rescaled, tiny_model


def both(by, family="olmo2"):
    models = [tiny_model(family, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    return models[0], rescaled(models[1], by=by)


@pytest.mark.parametrize("family", ["olmo2", "llama"])
def test_rescaling_by_a_power_of_two_changes_no_bit_of_the_outputs(family):
    plain, other = both(128.0, family)
    tokens = torch.tensor([[0, 3, 1, 4]])
    a, b = plain(tokens, output_hidden_states=True), other(tokens, output_hidden_states=True)
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.hidden_states[-1], 128 * b.hidden_states[-1])
    assert torch.equal(a.hidden_states[1], b.hidden_states[1])


def test_rescaling_moves_the_gradient_at_the_final_state():
    plain, other = both(8.0)
    final = torch.ones(1, 1, 16, dtype=torch.float64)
    slopes = [torch.func.grad(lambda h, m=m: m.lm_head(h)[0, 0, 2])(final) for m in (plain, other)]
    assert torch.equal(8 * slopes[0], slopes[1])


def test_what_cannot_be_rescaled_is_named():
    with pytest.raises(ValueError, match="by: expected a positive number, got 0"):
        both(0.0)
    with pytest.raises(ValueError, match="model: expected a head of its own"):
        both(2.0, "gpt2")
