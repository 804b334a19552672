"""From a model's logits to its policy: log-probabilities over the token ids in use, and their entropy."""

import torch
from jaxtyping import Float
from torch import Tensor


def log_policy(logits: Float[Tensor, "*batch rows"], *, vocab: int) -> Float[Tensor, "*batch vocab"]:
    """log pi over the ``vocab`` token ids in use; padding rows are left out before normalising."""
    if not 1 <= vocab <= logits.shape[-1]:
        raise ValueError(f"vocab: expected 1 to {logits.shape[-1]} (the model's rows), got {vocab}")
    return logits[..., :vocab].log_softmax(-1)


def entropy(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of distributions given by their logarithms (0 log 0 = 0)."""
    return torch.special.entr(log_probs.exp()).sum(-1)
