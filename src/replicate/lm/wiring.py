"""What the modules of section 4 need to know of a model of ``transformers``, whatever its architecture."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from replicate.lm.modes import full_precision


def require_eager(model: nn.Module, why: str) -> None:
    """Raises ``ValueError`` unless ``model`` runs eager attention.

    A fused kernel has no second derivative and no batched backward pass, and it never forms the attention weights.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    if attention != "eager":
        raise ValueError(f"model: {why} needs attn_implementation='eager', got {attention!r}")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks: the one module list as long as its configuration says."""
    depth = model.config.num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(f"model: expected one list of {depth} decoder blocks, found {len(found)}")
    return found[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside; those that did do again afterwards."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def precision_of(model: nn.Module) -> AbstractContextManager:
    """:func:`~replicate.lm.modes.full_precision` around a float64 model, nothing (and no cost) around another."""
    return full_precision() if next(model.parameters()).dtype == torch.float64 else nullcontext()
