"""What the other rooms need to know of a model of ``transformers``, whatever its architecture."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FINAL = -1
"""The number of the final state, the normed one that the output head reads; last in any list of all layers.

Layers are numbered alike everywhere: 0 is the embeddings' output, k = 1..depth the output of block k as it leaves the
block, before any norm behind it, and FINAL the final state.
"""


def layer_number(model: nn.Module, layer: int) -> int:
    """``layer`` if ``model`` has it: 0 to its number of blocks, or :data:`FINAL`. Otherwise ``ValueError``."""
    depth = model.config.num_hidden_layers
    if layer != FINAL and not 0 <= layer <= depth:
        raise ValueError(
            f"layer: expected 0 to {depth} or {FINAL}, the final state (this model has {depth} blocks), got {layer}"
        )
    return layer


def require_eager(model: nn.Module, why: str) -> None:
    """Raises ``ValueError`` unless ``model`` runs eager attention.

    A fused kernel has no second derivative and no batched backward pass, and it never forms the attention weights.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    if attention != "eager":
        raise ValueError(f"model: {why} needs attn_implementation='eager', got {attention!r}")


def require_plain_head(
    head: nn.Module, final: Float[Tensor, "*batch hidden"], logits: Float[Tensor, "*batch rows"]
) -> None:
    """Raises ``ValueError`` unless a model's ``logits`` are its ``head`` applied to the final state (no soft cap, say).

    Closely in float64; below, a head may round otherwise for another number of positions.
    """
    rtol, atol = (1e-5, 1e-8) if logits.dtype == torch.float64 else (1e-2, 1e-3)
    with torch.no_grad():
        plain = torch.allclose(head(final), logits, rtol=rtol, atol=atol)
    if not plain:
        raise ValueError("model: expected logits = head(final state); this model does something in between")


def hidden_states(model: nn.Module, tokens: Int[Tensor, "batch length"]) -> tuple[list[Tensor], Tensor]:
    """h^0 (embeddings' output), h^l (output of block l), the final state that the head reads, and the logits.

    All come with their graph, from a leaf at the embeddings, since the parameters may carry none.
    """
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    seen: list[Tensor] = []
    first, head = blocks(model)[0], model.get_output_embeddings()
    hooks = [first.register_forward_pre_hook(_note_input(seen), with_kwargs=True)]
    hooks += [b.register_forward_hook(lambda _, __, out: seen.append(first_of(out))) for b in blocks(model)]
    hooks.append(head.register_forward_pre_hook(_note_input(seen), with_kwargs=True))
    try:
        logits = model(inputs_embeds=embedded, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return seen, logits


def first_of(output) -> Tensor:
    """A module's output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output


def _note_input(seen: list[Tensor]):
    def note(_, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    return note


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks: the one module list as long as the configuration says."""
    depth = model.config.num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(f"model: expected one list of {depth} decoder blocks, found {len(found)}")
    return found[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside; what did before does again after."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)
