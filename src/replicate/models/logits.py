"""From a model's logits to its policy: log-probabilities over the token ids in use, and their entropy."""

import torch
from jaxtyping import Float
from torch import Tensor


def log_policy(logits: Float[Tensor, "*batch rows"], *, vocab: int) -> Float[Tensor, "*batch vocab"]:
    """log pi over the ``vocab`` token ids in use; padding rows are left out before normalising.

    In float32 at least: a softmax in bfloat16 would lose J's third digit.
    """
    if not 1 <= vocab <= logits.shape[-1]:
        raise ValueError(f"vocab: expected 1 to {logits.shape[-1]} (the model's rows), got {vocab}")
    return logits[..., :vocab].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def entropy(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of distributions given by their logarithms (0 log 0 = 0)."""
    return torch.special.entr(log_probs.exp()).sum(-1)
