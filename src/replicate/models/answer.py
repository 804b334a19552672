"""One forward pass to the answer position that stops the graph at a chosen layer, and pulling costates back to it.

Layers are numbered as :data:`~replicate.models.hooks.FINAL` says. At a numbered layer the state is its output at all
prompt positions, though at the last block's only the answer position is read; the *final state* is the answer position
alone.

Parameters stay out of the graph: gradients run through activations only, and only above the chosen layer. For OLMo-2
both passes are written out in :mod:`replicate.models.olmo2`, which takes less time; other models go through autograd.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.models import olmo2
from replicate.models.hooks import FINAL, blocks, first_of, frozen, layer_number, require_plain_head


@dataclass(frozen=True)
class AnswerPass:
    """What one pass gives. ``final`` [prompts, hidden] is the head's input at the answer position, ``logits``
    [prompts, rows] its output, ``state`` [prompts, length, hidden] the state at the chosen layer (None at the final
    state), ``head`` [rows, hidden] the output head's weight; ``tape`` what the written-out backward pass needs (None
    where autograd's graph serves)."""

    final: Float[Tensor, "prompts hidden"]
    logits: Float[Tensor, "prompts rows"]
    state: Float[Tensor, "prompts length hidden"] | None
    head: Float[Tensor, "rows hidden"]
    tape: olmo2.Tape | None = None


def answer_pass(
    model: nn.Module,
    tokens: Int[Tensor, "prompts length"],
    *,
    layer: int = FINAL,
    by_hand: bool | None = None,
) -> AnswerPass:
    """Runs ``model`` once on ``tokens``; see :class:`AnswerPass`.

    ``by_hand`` chooses the passes that are written out over those of autograd; by default wherever there are any.
    Raises ``ValueError`` for a layer out of range, for a model whose passes are not written out where they are asked
    for, and for one whose logits are not its head applied to the final state (a soft cap, say): its costates would come
    out silently wrong.
    """
    layer = layer_number(model, layer)
    if olmo2.chosen(model, by_hand):
        return _by_hand(model, tokens, layer)
    head = model.get_output_embeddings()
    seen: dict[str, Tensor] = {}
    hooks = [head.register_forward_pre_hook(lambda _, inputs: seen.update(final=inputs[0]))]
    if layer != FINAL:
        module = model.get_input_embeddings() if layer == 0 else blocks(model)[layer - 1]
        hooks.append(module.register_forward_hook(lambda _, __, output: _cut(seen, output)))
    try:
        with frozen(model), torch.set_grad_enabled(layer != FINAL):
            logits = model(input_ids=tokens, logits_to_keep=1, use_cache=False).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()
    final = seen["final"][:, -1]
    require_plain_head(head, final, logits)
    return AnswerPass(final, logits.detach(), seen.get("state"), head.weight.detach())


def pull_back(
    answer: AnswerPass, costates: Float[Tensor, "samples prompts hidden"]
) -> Float[Tensor, "samples prompts state"]:
    """(dh_final / ds)^T applied to costates at the final state; the state's positions and features are flattened.

    All samples go through one batched backward pass (with autograd a single one goes unbatched, which is faster). At
    the final state there is nothing to pull back.
    """
    if answer.state is None:
        return costates
    if answer.tape is not None:
        *_, (_, grads) = olmo2.pull_back(answer.tape, costates[:, :, None].to(answer.final.dtype))
        return olmo2.padded(grads, answer.state.shape[1]).flatten(2)
    costates, alone = costates.to(answer.final.dtype), len(costates) == 1
    (grads,) = torch.autograd.grad(
        answer.final,
        answer.state,
        costates[0] if alone else costates,
        is_grads_batched=not alone,
        retain_graph=True,
    )
    return (grads[None] if alone else grads).flatten(2)


def _by_hand(model: nn.Module, tokens: Int[Tensor, "prompts length"], layer: int) -> AnswerPass:
    tape = olmo2.forward(model, tokens, start=layer)
    final, weight = tape.final[:, -1], model.lm_head.weight.detach()
    with torch.no_grad():
        logits = model.lm_head(final)
    if layer == FINAL:
        return AnswerPass(final, logits, None, weight)
    return AnswerPass(final, logits, tape.state, weight, tape)


def _cut(seen: dict[str, Tensor], output):
    leaf = first_of(output).detach().requires_grad_()
    seen["state"] = leaf
    return (leaf, *output[1:]) if isinstance(output, tuple) else leaf
