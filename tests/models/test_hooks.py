"""What is asked of a model before anything is computed with it."""

import pytest
import torch
from torch import nn

from replicate.lm import recurrence
from replicate.models.answer import answer_pass
from replicate.models.fresh import tiny_model
from replicate.models.hooks import require_plain_head

V = 6


@pytest.mark.parametrize(
    ("dtype", "unseen", "seen"), [(torch.float32, 1e-4, 0.03), (torch.float64, 1e-9, 1e-3)]
)
def test_a_head_is_plain_to_the_accuracy_of_its_numbers(dtype, unseen, seen):
    g = torch.Generator().manual_seed(0)
    head = nn.Linear(8, V, dtype=dtype)
    final = torch.randn(3, 8, generator=g, dtype=dtype)
    logits = head(final)
    require_plain_head(head, final, logits)
    require_plain_head(head, final, logits * (1 + unseen))
    with pytest.raises(ValueError, match=r"model: expected logits = head\(final state\)"):
        require_plain_head(head, final, logits * (1 + seen))


@pytest.mark.parametrize("route", ["an answer pass", "a recurrence"])
def test_a_soft_cap_is_refused_by_every_route_that_reads_the_head(route):
    """A cap at thirty times the largest logit bends it by a few parts in ten thousand."""
    model = tiny_model("llama", vocab=V, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(1, 2, dtype=torch.long)

    def start():
        if route == "an answer pass":
            return answer_pass(model, tokens)
        return recurrence.transformer(model)

    start()
    cap = 30 * model(input_ids=tokens).logits.abs().max()
    forward = model.forward

    def capped(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = cap * torch.tanh(out.logits / cap)
        return out

    model.forward = capped
    with pytest.raises(ValueError, match=r"model: expected logits = head\(final state\)"):
        start()
