r"""A language model as the recurrence it is at sampling time, with a state that (15) is exact for.

    s_{t+1} = F(s_t, e(o_t)),    z_t = W(s_t),    o_t ~ pi_t = softmax(z_t)

``s_t`` is everything the model remembers before token o_t is chosen, one flat vector per sample:

* a transformer: the keys and values of every position read so far in every layer (the cache), position by position,
  and after them the final hidden state h_t that the logits are read from. A position's keys and values never change,
  so F repeats the old cache and appends one column: the identity block of ds_{t+1}/ds_t.
* a GRU or a plain recurrent net (Elman's): its hidden vector.
* a bigram model: a function of the last token's embedding, and so nothing that survives one step.

The token enters through its embedding e(o_t) alone, which is where a soft token can be put in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from replicate.models.fresh import tiny_model
from replicate.models.hooks import frozen, require_eager, require_plain_head
from replicate.models.logits import log_policy
from replicate.models.precision import precision_of

State = Float[Tensor, "batch state"]
Embedded = Float[Tensor, "batch dim"]
OneState = Float[Tensor, "1 n"]

Scale = Float[Tensor, " T"] | Float[Tensor, "T batch 1"]
"""What multiplies the logits of step t (an inverse temperature): one number, or one for each state of the batch."""

Scales = Float[Tensor, "settings T"]
"""Several settings of a factor for each step."""


@dataclass(frozen=True)
class Recurrence:
    """``advance`` is F, ``logits`` is W (over tokens in use), ``embeddings`` [vocab, dim] the rows e(o).

    ``kept(n)`` says how many leading entries of a state of n entries the next state repeats unchanged (0: none); the
    head reads none of these.
    """

    advance: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    embeddings: Float[Tensor, "vocab dim"]
    kept: Callable[[int], int]

    def read(self, state: State, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch next"]:
        """F(s_t, e(o_t)) for tokens o_t."""
        return self.advance(state, self.embeddings[tokens])


def transformer(model: PreTrainedModel, *, vocab: int | None = None) -> Recurrence:
    """The recurrence of a causal LM of ``transformers``, the state being its cache and its final hidden state.

    ``vocab`` is the number of token ids in use (default: all rows); rows from there on are padding. Raises
    ``ValueError`` for fused attention, for more tokens than rows, and for a model whose logits are not its head
    applied to the final hidden state (a soft cap, say).
    """
    require_eager(model, "a differentiable cache")
    embeddings = model.get_input_embeddings().weight.detach()
    vocab = len(embeddings) if vocab is None else vocab
    if not 1 <= vocab <= len(embeddings):
        raise ValueError(f"vocab: expected 1 to {len(embeddings)} (the model's rows), got {vocab}")
    shape = _column_shape(model)
    _check_head(model)
    width = model.config.hidden_size
    head = model.get_output_embeddings()
    weight, bias = head.weight.detach()[:vocab], getattr(head, "bias", None)
    bias = None if bias is None else bias.detach()[:vocab]

    def advance(state: Tensor, embedded: Tensor) -> Tensor:
        layers = _unpack(state[:, :-width], shape)
        past = layers[0][0].shape[2]
        with frozen(model), precision_of(model):
            out = model.base_model(
                inputs_embeds=embedded[:, None],
                past_key_values=DynamicCache(layers),
                position_ids=torch.full((1, 1), past),
                use_cache=True,
            )
        column = _pack(out.past_key_values, start=past)
        return torch.cat([state[:, :-width], column, out.last_hidden_state[:, -1]], dim=1)

    def logits(state: Tensor) -> Tensor:
        return nn.functional.linear(state[:, -width:], weight, bias)

    return Recurrence(advance, logits, embeddings[:vocab], lambda n: n - width)


def read_prompt(model: PreTrainedModel, embedded: Float[Tensor, "batch length dim"]) -> State:
    """The state after reading prompts given by their embeddings, from which its gradient goes on to them."""
    require_eager(model, "a differentiable cache")
    with frozen(model), precision_of(model):
        out = model.base_model(inputs_embeds=embedded, use_cache=True)
    return torch.cat([_pack(out.past_key_values, start=0), out.last_hidden_state[:, -1]], dim=1)


def prompt_state(model: PreTrainedModel, prompts: Int[Tensor, "batch length"]) -> State:
    """The state s_1 after reading ``prompts``, without graph."""
    with torch.no_grad():
        return read_prompt(model, model.get_input_embeddings()(prompts))


def gru(*, vocab: int, hidden: int, gain: float = 1.0, generator: torch.Generator) -> Recurrence:
    """A gated recurrent unit with fresh weights: a recurrence that is differentiable at a fixed token."""
    cell = nn.GRUCell(hidden, hidden, dtype=torch.float64).requires_grad_(False)
    for weight in cell.parameters():
        weight.normal_(0.0, gain / hidden**0.5, generator=generator)
    embeddings, head = _ends(vocab, hidden, gain, generator)
    return Recurrence(lambda s, e: cell(e, s), lambda s: s @ head.T, embeddings, lambda n: 0)


def elman(*, vocab: int, hidden: int, gain: float = 1.0, generator: torch.Generator) -> Recurrence:
    """The plain recurrent net s' = tanh(U s + W e(o)), with fresh weights."""
    carry, read = (
        torch.randn(hidden, hidden, dtype=torch.float64, generator=generator) * (gain / hidden**0.5)
        for _ in range(2)
    )
    embeddings, head = _ends(vocab, hidden, gain, generator)
    return Recurrence(
        lambda s, e: torch.tanh(s @ carry.T + e @ read.T), lambda s: s @ head.T, embeddings, lambda n: 0
    )


def bigram(*, vocab: int, hidden: int, gain: float = 1.0, generator: torch.Generator) -> Recurrence:
    """A model whose state is a function of its last token alone: its only memory is the token stream."""
    mix = torch.randn(hidden, hidden, dtype=torch.float64, generator=generator) * (gain / hidden**0.5)
    embeddings, head = _ends(vocab, hidden, gain, generator)
    return Recurrence(lambda s, e: torch.tanh(e @ mix.T), lambda s: s @ head.T, embeddings, lambda n: 0)


@dataclass(frozen=True)
class Unrolled:
    """A group of completions run through a recurrence: the states s_1..s_T (each with its graph to the ones before,
    their sizes growing with a cache) and log pi(o_t | s_t) [batch, T]."""

    states: list[Tensor]
    logp: Float[Tensor, "batch T"]


def unroll(
    recurrence: Recurrence,
    state: State,
    completions: Int[Tensor, "rows T"],
    *,
    scale: Scale | None = None,
) -> Unrolled:
    """Feeds given tokens; ``scale`` multiplies the logits of each step (see :data:`Scale`; default 1).

    Raises ``ValueError`` for a completion without tokens, tokens outside the vocabulary and batches that differ.
    """
    check_completions(recurrence, state, completions)
    states, logp = [state], []
    for t, tokens in enumerate(completions.T):
        differentiable(states[-1])
        logp.append(log_policies(recurrence, states[-1], t, scale).gather(1, tokens[:, None]))
        if t + 1 < completions.shape[1]:
            states.append(recurrence.read(states[-1], tokens))
    return Unrolled(states, torch.cat(logp, dim=1))


def log_probs_of(
    recurrence: Recurrence, completions: Int[Tensor, "N T"], *, scale: Scale | None = None
) -> Callable[[Tensor], Tensor]:
    """log pi(o_t | s, o_<t) [N, T] of given completions as a function of states [N, n], one row per completion."""
    return lambda state: unroll(recurrence, state, completions, scale=scale).logp


def log_policies(
    recurrence: Recurrence, state: State, t: int, scale: Scale | None = None
) -> Float[Tensor, "batch vocab"]:
    """log pi_t at ``state``, the logits multiplied by ``scale[t]``."""
    logits = recurrence.logits(state)
    return log_policy(logits if scale is None else logits * scale[t], vocab=logits.shape[-1])


def differentiable(state: State) -> None:
    """Starts a graph at ``state`` if gradients are on and it has none, as after a step that forgets everything."""
    if torch.is_grad_enabled() and not state.requires_grad:
        state.requires_grad_()


def check_completions(recurrence: Recurrence, state: State, completions: Int[Tensor, "rows T"]) -> None:
    """Raises ``ValueError`` where completions cannot be fed from ``state``."""
    vocab = len(recurrence.embeddings)
    if completions.shape[1] < 1:
        raise ValueError(
            f"completions: expected at least one token each, got shape {list(completions.shape)}"
        )
    if len(completions) != len(state):
        raise ValueError(f"completions: expected one per state ({len(state)}), got {len(completions)}")
    if completions.min() < 0 or completions.max() >= vocab:
        low, high = completions.min().item(), completions.max().item()
        raise ValueError(f"completions: expected token ids in 0 to {vocab - 1}, got {low} to {high}")


def _column_shape(model: PreTrainedModel) -> tuple[int, int, int, int]:
    """[layers, 2 (keys, values), heads, head_dim] of one position's column, read off a one-token pass."""
    with torch.no_grad():
        one = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    layers = one.past_key_values.layers
    keys = layers[0].keys
    return len(layers), 2, keys.shape[1], keys.shape[3]


def _check_head(model: PreTrainedModel) -> None:
    with torch.no_grad():
        tokens = torch.zeros(1, 2, dtype=torch.long)
        final = model.base_model(input_ids=tokens).last_hidden_state
        require_plain_head(model.get_output_embeddings(), final, model(input_ids=tokens).logits)


def _pack(cache, *, start: int) -> Float[Tensor, "batch columns"]:
    """Keys and values from position ``start`` on, flattened position by position."""
    pairs = [torch.stack([x.keys[:, :, start:], x.values[:, :, start:]]) for x in cache.layers]
    stacked = torch.stack(pairs)  # [layers, 2, batch, heads, length, head_dim]
    return stacked.permute(2, 4, 0, 1, 3, 5).flatten(1)


def _unpack(flat: Tensor, shape: tuple[int, int, int, int]) -> list[tuple[Tensor, Tensor]]:
    columns = flat.unflatten(1, (-1, *shape)).permute(2, 3, 0, 4, 1, 5)
    return [(layer[0], layer[1]) for layer in columns]


def _ends(vocab: int, hidden: int, gain: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    embeddings = torch.randn(vocab, hidden, dtype=torch.float64, generator=generator)
    head = torch.randn(vocab, hidden, dtype=torch.float64, generator=generator) * (2 * gain / hidden**0.5)
    return embeddings, head


def fresh_start(
    family: str, *, vocab: int, generator: torch.Generator, **size
) -> tuple[Recurrence, OneState]:
    """A model with fresh weights and its state s_1: a transformer after a random prompt of four tokens, or, for
    ``"gru"``, a gated recurrent unit after one token. ``size`` goes to :func:`replicate.models.fresh.tiny_model`."""
    if family == "gru":
        model = gru(vocab=vocab, hidden=8, generator=generator)
        return model, model.read(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    small = tiny_model(family, vocab=vocab, generator=generator, **size)
    prompt = torch.randint(vocab, (1, 4), generator=generator)
    return transformer(small), prompt_state(small, prompt)
