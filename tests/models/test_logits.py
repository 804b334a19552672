"""From logits to a policy and its entropy."""

import math

import pytest
import torch

from replicate.models.logits import entropy, log_policy


def test_padding_rows_get_no_mass():
    logits = torch.zeros(2, 10)
    logits[:, 7:] = 50.0
    assert torch.allclose(log_policy(logits, vocab=7).exp(), torch.full((2, 7), 1 / 7))
    assert not torch.allclose(log_policy(logits, vocab=8).exp()[:, :7], torch.full((2, 7), 1 / 7))


def test_entropy_of_uniform_one_hot_and_zero_mass():
    assert entropy(torch.full((4,), 0.25).log()).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([0.0, -torch.inf])).item() == 0.0


@pytest.mark.parametrize("vocab", [0, 11])
def test_more_tokens_than_rows_are_refused(vocab):
    with pytest.raises(ValueError, match=rf"vocab: expected 1 to 10 \(the model's rows\), got {vocab}"):
        log_policy(torch.zeros(2, 10), vocab=vocab)
