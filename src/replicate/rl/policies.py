"""Replicas of one language model with parameters of their own, run as one batched computation.

RL on a tiny model spends its time on launching small kernels, so the seeds of an experiment are stacked along a
leading *lanes* axis and differentiated together: one functional call under ``vmap``. A model that fills the machine by
itself is better served by :class:`SinglePolicy`, one lane without ``vmap``. Both look the same from outside.

All parameters of all lanes live in one flat tensor [lanes, parameters]: one optimiser step and one norm for all.

A policy that computes in bfloat16 keeps its parameters, which the optimiser moves, in float32; its passes read copies
(:class:`~replicate.models.precision.Casts`), so that they are those of the same model opened in bfloat16.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache

from replicate.models.compilation import uncompiled
from replicate.models.hooks import require_eager
from replicate.models.precision import Casts, trained_dtype

Logits = Float[Tensor, "lanes batch tokens rows"]

Tokens = Int[Tensor, "lanes batch length"] | Float[Tensor, "lanes batch length vocab"]
"""What a policy reads: token ids, or soft tokens, each a distribution over the first ``vocab`` of them. Of a soft token
the model reads the mixture of embeddings, sum_v p(v) e(v), and a gradient goes both to p and to the embeddings."""


@runtime_checkable
class Policy(Protocol):
    """What the trainer needs of a policy; every tensor has a leading lanes axis."""

    lanes: int

    def parameters(self) -> list[Tensor]:
        """The tensors that the optimiser updates."""

    def logits(
        self,
        tokens: Tokens,
        *,
        keep: int,
        cache: "Cache | None" = None,
        behind: "Behind | None" = None,
    ) -> Logits:
        """Logits of the last ``keep`` positions; ``cache`` holds what came before and is extended.

        ``tokens`` are ids or, as floats, soft tokens; ``ValueError`` for a soft token of more entries than embeddings.

        ``behind`` says where the tokens stand and what they see, where they are not simply what comes next.
        """

    def clip_gradients(self, max_norm: float | None) -> Float[Tensor, " lanes"]:
        """Scales each lane's gradient to at most ``max_norm`` (None: not at all); returns the norms before."""


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values per layer, each [lanes, batch, heads, length, head_dim]."""


@dataclass(frozen=True)
class Behind:
    """Tokens that stand side by side behind one prompt: the ``positions`` of the new ones, and which of the cached ones
    and of themselves each of them sees."""

    positions: Int[Tensor, " new"]
    sees: Bool[Tensor, "new total"]


class StackedPolicy:
    """``lanes`` copies of ``model``, batched with ``vmap``. Needs eager attention: fused kernels do not batch.

    ``dtype`` is what the passes compute in (default: the model's own). ``written_out`` (settable) allows rollouts to
    replace ``logits`` by the passes of :mod:`replicate.models.olmo2_lanes`, where these serve.
    """

    written_out = True

    def __init__(self, model: nn.Module, lanes: int, *, dtype: torch.dtype | None = None) -> None:
        if lanes < 1:
            raise ValueError(f"lanes: expected at least 1, got {lanes}")
        require_eager(model, "a stack of lanes")
        train_padding_row(model)
        self.model, self.lanes = model, lanes
        named = dict(model.named_parameters())
        self._names = list(named)
        self._shapes = [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        self.dtype = dtype or model.dtype
        flat = torch.cat([p.detach().flatten() for p in named.values()]).to(trained_dtype(self.dtype))
        self.flat = flat.expand(lanes, -1).clone().requires_grad_()
        self._casts = Casts([self.flat], self.dtype)

    def parameters(self) -> list[Tensor]:
        """The flat tensor [lanes, parameters]."""
        return [self.flat]

    def weights(self) -> dict[str, Tensor]:
        """Views of the flat tensor by parameter name, each [lanes, ...], in the precision of the passes."""
        flat = self.flat if self.flat.dtype == self.dtype else self._casts()[0]
        pieces = flat.split(self._sizes, dim=1)
        return {
            name: piece.view(self.lanes, *shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }

    def logits(
        self,
        tokens: Tokens,
        *,
        keep: int,
        cache: Cache | None = None,
        behind: Behind | None = None,
    ) -> Logits:
        """See :class:`Policy`."""
        behind = behind or _next_in_line(tokens.shape[2], cache, tokens.device)
        mask = _additive(behind.sees, self.dtype)

        def one_lane(weights, row, layers):
            return _forward(self.model, weights, row, layers, mask, behind.positions, keep, cache is not None)

        out, layers = torch.vmap(one_lane)(self.weights(), tokens, list(cache or []))
        if cache is not None:
            cache[:] = layers
        return out

    def clip_gradients(self, max_norm: float | None) -> Float[Tensor, " lanes"]:
        """See :class:`Policy`."""
        norms = self.flat.grad.norm(dim=1)
        if max_norm is not None:
            self.flat.grad *= (max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        return norms


class SinglePolicy:
    """One lane: ``model`` itself, updated in place, with whatever attention kernel it was opened with.

    ``dtype`` is what the passes compute in (default: the model's own). In bfloat16 the model's parameters become
    float32 here; open it in float32 for what its file has beyond bfloat16. ``written_out`` as in a stack.
    """

    lanes, written_out = 1, True

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        train_padding_row(model)
        self.dtype = dtype or model.dtype
        self.model = model.to(trained_dtype(self.dtype))
        named = dict(self.model.named_parameters())
        self._names = list(named)
        self._casts = Casts(named.values(), self.dtype)

    def parameters(self) -> list[Tensor]:
        """The model's parameters."""
        return list(self.model.parameters())

    def weights(self) -> dict[str, Tensor] | None:
        """The copies that the passes read, by parameter name; None where they read the parameters themselves."""
        if self.model.dtype == self.dtype:
            return None
        return dict(zip(self._names, self._casts(), strict=True))

    def logits(
        self,
        tokens: Tokens,
        *,
        keep: int,
        cache: Cache | None = None,
        behind: Behind | None = None,
    ) -> Logits:
        """See :class:`Policy`."""
        # Without a mask of its own a model takes its fastest causal kernel.
        mask = None if behind is None else _additive(behind.sees, self.dtype)
        behind = behind or _next_in_line(tokens.shape[2], cache, tokens.device)
        layers = [(k[0], v[0]) for k, v in cache or []]
        weights, caching = self.weights(), cache is not None
        with uncompiled(self.model) if caching else nullcontext():
            out, layers = _forward(
                self.model, weights, tokens[0], layers, mask, behind.positions, keep, caching
            )
        if cache is not None:
            cache[:] = [(k[None], v[None]) for k, v in layers]
        return out[None]

    def clip_gradients(self, max_norm: float | None) -> Float[Tensor, " lanes"]:
        """See :class:`Policy`."""
        limit = float("inf") if max_norm is None else max_norm
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)[None]


def repeat_cache(cache: Cache, times: int) -> Cache:
    """Each prompt's keys and values for so many rows behind it, [lanes, batch * times, ...]; a list of its own."""
    if times == 1:
        return list(cache)
    return [(k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)) for k, v in cache]


def side_by_side(length: int, group: int, steps: int, *, device: torch.device | None = None) -> Behind:
    """``group`` completions of ``steps`` tokens behind a prompt of ``length`` tokens, as new tokens in one row.

    They stand step by step, all completions' first tokens before the second ones. Each sees the prompt and what its own
    completion has so far, so that a prompt's keys and values are kept once for its whole group.
    """
    step = torch.arange(steps, device=device).repeat_interleave(group)
    member = torch.arange(group, device=device).repeat(steps)
    own = (member[:, None] == member) & (step[:, None] >= step)
    return Behind(length + step, torch.cat([own.new_ones(len(step), length), own], dim=1))


def train_padding_row(model: nn.Module) -> None:
    """Lets the padding token's embedding have a gradient like any other's.

    An embedding with a padding index gives that row no gradient, under vmap in lane 0 only. Prompts hold no padding
    here, so a row that is read is a token like any other, in every lane.
    """
    model.get_input_embeddings().padding_idx = None


def _forward(model, weights, tokens, layers, mask, positions, keep, caching):
    kwargs = {"attention_mask": mask, "use_cache": caching, "logits_to_keep": keep}
    if tokens.is_floating_point():
        kwargs["inputs_embeds"] = _mixture(model, weights, tokens)
    else:
        kwargs["input_ids"] = tokens
    # Given outright: what transformers derives by itself depends on the batch, which vmap does not allow.
    kwargs["position_ids"] = positions[None]
    if caching:
        kwargs["past_key_values"] = DynamicCache(layers) if layers else DynamicCache()
    out = model(**kwargs) if weights is None else functional_call(model, weights, kwargs=kwargs)
    grown = [(layer.keys, layer.values) for layer in out.past_key_values.layers] if caching else []
    return out.logits, grown


def _mixture(model, weights, soft: Float[Tensor, "batch length vocab"]) -> Float[Tensor, "batch length dim"]:
    """sum_v p(v) e(v), with the embeddings that the pass reads."""
    table, vocab = model.get_input_embeddings().weight, soft.shape[-1]
    if weights is not None:
        table = weights[next(name for name, p in model.named_parameters() if p is table)]
    if vocab > len(table):
        raise ValueError(f"tokens: expected soft tokens of at most {len(table)} entries, got {vocab}")
    return soft.to(table.dtype) @ table[:vocab]


def _next_in_line(new: int, cache: Cache | None, device: torch.device) -> Behind:
    """``new`` tokens that follow what the cache holds and each other."""
    past = cache[0][0].shape[3] if cache else 0
    positions = torch.arange(past, past + new, device=device)
    return Behind(positions, torch.arange(past + new, device=device) <= positions[:, None])


def _additive(sees: Bool[Tensor, "new total"], dtype: torch.dtype) -> Float[Tensor, "1 1 new total"]:
    """The mask as attention adds it to its scores."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[None, None]
