"""What the modules of section 4 need to know of a model of ``transformers``, whatever its architecture."""

from jaxtyping import Int
from torch import Tensor, nn

from replicate.models.answer import blocks


def require_eager(model: nn.Module, why: str) -> None:
    """Raises ``ValueError`` unless ``model`` runs eager attention.

    A fused kernel has no second derivative and no batched backward pass, and it never forms the attention weights.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    if attention != "eager":
        raise ValueError(f"model: {why} needs attn_implementation='eager', got {attention!r}")


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
