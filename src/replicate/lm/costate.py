r"""Empirical costates: Def. 2, what is degenerate in it, and the state for which recursion (15) is exact.

The objective is (13), L = - sum_t A_t log pi(o_t | h_t), at fixed tokens. Two kinds of state are differentiated:

* the hidden states h_t^l of layer l at position t, as in Def. 2: :func:`layer_costates`, one backward pass for all
  layers and positions; :func:`layer_influence` and :func:`credit_matrix` show what such a state can carry (A3);
* the state of a :class:`~replicate.lm.recurrence.Recurrence`, the cache of all layers: :func:`costates` by one
  backward pass, :func:`costates_by_recursion` by (15).

Layers are numbered as :data:`~replicate.models.hooks.FINAL` says; a list of all of them ends with the final state.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replicate.lm.recurrence import Recurrence, Scale, State, log_policies, unroll
from replicate.models import olmo2, olmo2_cache
from replicate.models.hooks import FINAL, frozen, hidden_states, layer_number, require_eager
from replicate.models.jacobians import rows
from replicate.models.logits import log_policy
from replicate.models.precision import precision_of

Tokens = Int[Tensor, "batch T"]
PerToken = Float[Tensor, "batch T"]


def layer_costates(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    completions: Tokens,
    advantages: Float[Tensor, "batch ..."],
    *,
    vocab: int,
    layers: Sequence[int] | None = None,
    mask: Bool[Tensor, "batch T"] | None = None,
    by_hand: bool | None = None,
) -> Float[Tensor, "layers batch positions hidden"]:
    """Def. 2, lambda^ = - dL/dh_t^l, at every position that is read and for each of ``layers`` (default: all).

    Positions are those of the prompt and of o_1..o_{T-1}; log pi(o_t) is read at position length + t - 2, counted
    from 0. ``advantages`` are [batch] or [batch, T]. ``mask`` is true on a completion's tokens; behind them may be
    padding, which counts nothing. One forward pass and one backward pass through activations, in the model's own
    precision; any attention kernel will do. ``by_hand`` chooses the passes that are written out for OLMo-2
    (:mod:`replicate.models.olmo2`) over autograd's; by default wherever there are any.
    Raises ``ValueError`` for a layer out of range, padding inside a completion, shapes that do not fit, and a model
    whose passes are not written out where they are asked for.
    """
    weights = token_weights(completions, advantages, mask)
    chosen = layer_numbers(model, layers)
    if olmo2.chosen(model, by_hand):
        return _layer_costates_by_hand(model, prompts, completions, weights, vocab, chosen)
    with frozen(model), torch.enable_grad(), precision_of(model):
        hidden, logp = _read(model, prompts, completions, vocab)
        loss = -(weights * logp).sum()  # (13)
        grads = torch.autograd.grad(loss, [hidden[layer] for layer in chosen])
    return -torch.stack(grads)  # (14)


def _layer_costates_by_hand(model, prompts, completions, weights, vocab, layers) -> Tensor:
    tokens = torch.cat([prompts, completions[:, :-1]], dim=1)
    read = completions.shape[1]
    tape = olmo2.forward(
        model, tokens, start=min((k for k in layers if k != FINAL), default=FINAL), read=read
    )
    final = tape.final.detach().requires_grad_()
    with frozen(model), torch.enable_grad():
        logp = taken(model.lm_head(final), completions, vocab)
        (at_final,) = torch.autograd.grad((weights * logp).sum(), final)  # (14) at the final state
    found = {FINAL: at_final}
    found |= {layer: back[0] for layer, back in olmo2.pull_back(tape, at_final[None])}
    return torch.stack([olmo2.padded(found[layer], tokens.shape[1]) for layer in layers])


def credit_matrix(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    completions: Tokens,
    advantages: Float[Tensor, "batch ..."],
    *,
    vocab: int,
    layer: int,
) -> Float[Tensor, "batch T T hidden"]:
    """Entry [b, k, t] is A_k dlog pi(o_k)/dh_t^l, the part of the costate at token t that comes from token k.

    The diagonal is all that (15) with one layer's output as the state can keep, because dh_{t+1}^l/dh_t^l = 0.
    """
    require_eager(model, "a credit matrix by batched backward passes")
    layer = layer_number(model, layer)
    weights = token_weights(completions, advantages, None)
    with frozen(model), torch.enable_grad(), precision_of(model):
        hidden, logp = _read(model, prompts, completions, vocab)
        full = rows(weights * logp, hidden[layer])
    return full[:, :, prompts.shape[1] - 1 :]


def layer_influence(
    model: nn.Module, tokens: Int[Tensor, " length"], *, layers: Sequence[int] | None = None
) -> Float[Tensor, "layers length layers length"]:
    """Frobenius norms of dh_k^{l'}/dh_t^l, indexed [l, t, l', k]: which state reaches which (A3), over ``layers``.

    Zero wherever l' <= l and k != t (a layer's output feeds only higher layers) and wherever k < t (causality).
    """
    hidden = _states(model, tokens, layers)
    blocks = [
        [_block_norms(rows(above.flatten(1), below), above.shape[2]) for above in hidden] for below in hidden
    ]
    return torch.stack([torch.stack(row, dim=1) for row in blocks])


def probed_influence(
    model: nn.Module,
    tokens: Int[Tensor, " length"],
    *,
    layers: Sequence[int] | None = None,
    probes: int,
    generator: torch.Generator,
) -> Float[Tensor, "layers length layers length"]:
    """:func:`layer_influence` from ``probes`` random cotangents in the place of all: |J|^2 = E |J^T v|^2, v ~ N(0, 1).

    One backward pass serves all layers and positions below, so it is cheaper by a factor of the model's width / probes.
    Zeros are exact; elsewhere the relative error is about sqrt(1 / (2 probes)), less where many directions count.
    """
    hidden = _states(model, tokens, layers)
    length, found = len(tokens), []
    for above in hidden:
        v = torch.zeros(length, probes, *above.shape, dtype=above.dtype)
        for k in range(length):
            v[k, :, 0, k] = torch.randn(probes, above.shape[2], generator=generator, dtype=above.dtype)
        basis = v.flatten(0, 1)
        pulled = torch.autograd.grad(
            above, hidden, basis, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        squares = [v.new_zeros(len(basis), length) if x is None else x[:, 0].square().sum(-1) for x in pulled]
        found.append(
            torch.stack(squares).unflatten(1, (length, probes)).mean(2).sqrt().transpose(1, 2)
        )  # [l, t, k]
    return torch.stack(found, dim=2)


def upward_share(influence: Float[Tensor, "layers length layers length"]) -> float:
    """The smallest effect of a state on a higher layer at a later position, over its effect there at its own position.

    From :func:`layer_influence`, or anything indexed as it is; the last block and the final state, which nothing above
    reads, are left out as sources. A ratio of effects on one layer has no units.
    """
    layers, length = influence.shape[:2]
    later = torch.ones(length, length).triu(1).bool()  # [t, k]
    shares = [
        (influence[low, :, high] / influence[low, :, high].diagonal()[:, None])[later]
        for low in range(layers - 2)
        for high in range(low + 1, layers)
    ]
    return float(torch.stack(shares).min())


def _states(model: nn.Module, tokens: Int[Tensor, " length"], layers: Sequence[int] | None) -> list[Tensor]:
    """Hidden states of the layers wanted, with their graph."""
    require_eager(model, "Jacobians by batched backward passes")
    with frozen(model), torch.enable_grad(), precision_of(model):
        hidden, _ = _read(model, tokens[None], torch.zeros(1, 1, dtype=torch.long), 1)
    return [hidden[layer] for layer in layer_numbers(model, layers)]


def _block_norms(full: Float[Tensor, "1 outs length hidden"], width: int) -> Float[Tensor, "length above"]:
    return full[0].unflatten(0, (-1, width)).square().sum((1, 3)).sqrt().T


def costates(
    recurrence: Recurrence,
    state: State,
    completions: Tokens,
    weights: PerToken,
    *,
    scale: Scale | None = None,
) -> list[Tensor]:
    """- dL/ds_t of (13) for t = 1..T by one backward pass; ``weights`` are the A_t, per token.

    The result's t-th entry has the shape of s_t, which grows by one column of the cache a step.
    """
    with torch.enable_grad():
        run = unroll(recurrence, state.detach().requires_grad_(), completions, scale=scale)
        objective = (weights * run.logp).sum()  # minus (13)
        return list(torch.autograd.grad(objective, run.states))


def costates_by_recursion(
    recurrence: Recurrence,
    state: State,
    completions: Tokens,
    weights: PerToken,
    *,
    scale: Scale | None = None,
    newest_only: bool = False,
) -> list[Tensor]:
    """The same by recursion (15), each step on its own: local score plus transition Jacobian transposed.

    ``newest_only`` takes as the state what the last token added (its column of the cache and h_t) and treats what is
    older as a constant, the way a recurrent net's state would be: no longer exact, because o_t's column is read by
    all later tokens and not only by the next.
    """
    with torch.no_grad():
        states = unroll(recurrence, state, completions, scale=scale).states
    column = len(states[-1][0]) - len(states[-2][0]) if len(states) > 1 else 0
    out: list[Tensor] = []
    for t in reversed(range(len(states))):
        leaf = states[t].detach().requires_grad_()
        tokens = completions[:, t]
        with torch.enable_grad():
            logp = log_policies(recurrence, leaf, t, scale).gather(1, tokens[:, None]).squeeze(1)
            carried = (recurrence.read(leaf, tokens) * out[-1]).sum() if out else 0.0
            # (15): A_t dlog pi(o_t)/ds_t + (ds_{t+1}/ds_t)^T lambda^_{t+1}
            (now,) = torch.autograd.grad((weights[:, t] * logp).sum() + carried, leaf)
        if newest_only:
            now[:, : max(0, recurrence.kept(now.shape[1]) - column)] = 0.0
        out.append(now)
    return out[::-1]


def cache_costates(
    model: nn.Module,
    prompts: Int[Tensor, "batch length"],
    completions: Tokens,
    advantages: Float[Tensor, "batch ..."],
    *,
    vocab: int,
) -> list[Tensor]:
    """What :func:`costates` gives for the cache of an OLMo-2, from one written-out backward pass over all tokens.

    No graph, no step from t to t + 1: see :mod:`replicate.models.olmo2_cache`. At h_t it is the score of o_t alone.
    Raises ``ValueError`` for a model whose backward pass is not written out.
    """
    olmo2.chosen(model, True)
    weights = token_weights(completions, advantages, None)
    tokens = torch.cat([prompts, completions[:, :-1]], dim=1)
    tape = olmo2.forward(model, tokens, read=completions.shape[1])
    scores = local_scores(model, tape.final, completions, vocab=vocab) * weights[..., None]
    caches = olmo2_cache.cache_costates(tape, scores)
    return [torch.cat([cache, scores[:, t]], dim=1) for t, cache in enumerate(caches)]


def local_scores(
    model: nn.Module, final: Float[Tensor, "batch T hidden"], completions: Tokens, *, vocab: int
) -> Float[Tensor, "batch T hidden"]:
    """dlog pi(o_t)/dh_t = W^T (onehot(o_t) - pi_t) at the final states, in closed form."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        pi = log_policy(head(final), vocab=vocab).exp()
        return (nn.functional.one_hot(completions, vocab).to(pi.dtype) - pi) @ head.weight[:vocab]


def costates_at_tokens(
    recurrence: Recurrence, state: State, completions: Tokens, weights: PerToken
) -> Float[Tensor, "batch fed dim"]:
    """- dL/de(o_t) of (13) at the embeddings of the tokens that are read back, o_1..o_{T-1}, tokens fixed.

    What is asked of every model in the same units, whatever its state: how far back credit travels without the path
    through a sampled token. Zeros are exact.
    """
    embedded = recurrence.embeddings[completions[:, :-1]].detach().requires_grad_()
    with torch.enable_grad():
        logp = log_probs_fed(recurrence, state.detach(), completions, embedded)
        (grads,) = torch.autograd.grad((weights * logp).sum(), embedded)
    return grads


def log_probs_fed(
    recurrence: Recurrence,
    state: State,
    completions: Tokens,
    embedded: Float[Tensor, "batch fed dim"],
) -> PerToken:
    """log pi(o_t) where ``embedded`` is read back in the place of the tokens' own embeddings."""
    logp = []
    for t, tokens in enumerate(completions.T):
        logp.append(log_policies(recurrence, state, t).gather(1, tokens[:, None]))
        if t + 1 < completions.shape[1]:
            state = recurrence.advance(state, embedded[:, t])
    return torch.cat(logp, dim=1)


def token_weights(
    completions: Tokens,
    advantages: Float[Tensor, "batch ..."],
    mask: Bool[Tensor, "batch T"] | None,
) -> PerToken:
    """A_t per token: one advantage for a whole completion is spread over it, masked tokens get 0."""
    if advantages.shape not in (completions.shape, completions.shape[:1]):
        raise ValueError(
            f"advantages: expected shape {list(completions.shape[:1])} or {list(completions.shape)}, "
            f"got {list(advantages.shape)}"
        )
    weights = advantages if advantages.ndim == 2 else advantages[:, None].expand(completions.shape)
    if mask is None:
        return weights
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        row = (mask[:, 1:] & ~mask[:, :-1]).any(1).nonzero()[0].item()
        raise ValueError(
            f"mask: expected padding only behind a completion, got some inside of completion {row}"
        )
    return torch.where(mask, weights, 0.0)


def layer_numbers(model: nn.Module, layers: Sequence[int] | None = None) -> list[int]:
    """Checked layer numbers; None: all of them, from the embeddings to the final state."""
    if layers is None:
        return [*range(model.config.num_hidden_layers + 1), FINAL]
    return [layer_number(model, layer) for layer in layers]


def _read(model, prompts, completions, vocab) -> tuple[list[Tensor], PerToken]:
    """Hidden states of all layers over prompt and o_<T, with graph, and log pi(o_t)."""
    tokens = torch.cat([prompts, completions[:, :-1]], dim=1)
    hidden, logits = hidden_states(model, tokens)
    return hidden, taken(logits[:, prompts.shape[1] - 1 :], completions, vocab)


def taken(logits: Float[Tensor, "batch T rows"], completions: Tokens, vocab: int) -> PerToken:
    """log pi(o_t) of the tokens taken."""
    return log_policy(logits, vocab=vocab).gather(2, completions[..., None]).squeeze(2)
