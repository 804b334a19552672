"""Replicas of one language model with parameters of their own, run as one batched computation.

RL on a tiny model spends its time on launching small kernels, so the seeds of an experiment are stacked along a
leading *lanes* axis and differentiated together: one functional call under ``vmap``. A model that fills the machine by
itself is better served by :class:`SinglePolicy`, one lane without ``vmap``. Both look the same from outside.

All parameters of all lanes live in one flat tensor [lanes, parameters]: one optimiser step and one norm for all.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache

from replicate.models.hooks import require_eager

Logits = Float[Tensor, "lanes batch tokens vocab"]


@runtime_checkable
class Policy(Protocol):
    """What the trainer needs of a policy; every tensor has a leading lanes axis."""

    lanes: int

    def parameters(self) -> list[Tensor]:
        """The tensors that the optimiser updates."""

    def logits(
        self, tokens: Int[Tensor, "lanes batch length"], *, keep: int, cache: "Cache | None" = None
    ) -> Logits:
        """Logits of the last ``keep`` positions; ``cache`` holds what came before and is extended."""

    def clip_gradients(self, max_norm: float | None) -> Float[Tensor, " lanes"]:
        """Scales each lane's gradient to at most ``max_norm`` (None: not at all); returns the norms before."""


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values per layer, each [lanes, batch, heads, length, head_dim]."""


class StackedPolicy:
    """``lanes`` copies of ``model``, batched with ``vmap``. Needs eager attention: fused kernels do not batch."""

    def __init__(self, model: nn.Module, lanes: int) -> None:
        if lanes < 1:
            raise ValueError(f"lanes: expected at least 1, got {lanes}")
        require_eager(model, "a stack of lanes")
        train_padding_row(model)
        self.model, self.lanes = model, lanes
        named = dict(model.named_parameters())
        self._names = list(named)
        self._shapes = [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        flat = torch.cat([p.detach().flatten() for p in named.values()])
        self.flat = flat.expand(lanes, -1).clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """The flat tensor [lanes, parameters]."""
        return [self.flat]

    def weights(self) -> dict[str, Tensor]:
        """Views of the flat tensor by parameter name, each [lanes, ...]."""
        pieces = self.flat.split(self._sizes, dim=1)
        return {
            name: piece.view(self.lanes, *shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }

    def logits(
        self, tokens: Int[Tensor, "lanes batch length"], *, keep: int, cache: Cache | None = None
    ) -> Logits:
        """See :class:`Policy`."""
        past = cache[0][0].shape[3] if cache else 0
        mask = _causal_mask(tokens.shape[2], past, like=self.flat)

        def one_lane(weights, row, layers):
            return _forward(self.model, weights, row, layers, mask, past, keep, cache is not None)

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
    """One lane: ``model`` itself, updated in place, with whatever attention kernel it was opened with."""

    lanes = 1

    def __init__(self, model: nn.Module) -> None:
        train_padding_row(model)
        self.model = model

    def parameters(self) -> list[Tensor]:
        """The model's parameters."""
        return list(self.model.parameters())

    def logits(
        self, tokens: Int[Tensor, "lanes batch length"], *, keep: int, cache: Cache | None = None
    ) -> Logits:
        """See :class:`Policy`."""
        past = cache[0][0].shape[3] if cache else 0
        layers = [(k[0], v[0]) for k, v in cache or []]
        out, layers = _forward(self.model, None, tokens[0], layers, None, past, keep, cache is not None)
        if cache is not None:
            cache[:] = [(k[None], v[None]) for k, v in layers]
        return out[None]

    def clip_gradients(self, max_norm: float | None) -> Float[Tensor, " lanes"]:
        """See :class:`Policy`."""
        limit = float("inf") if max_norm is None else max_norm
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)[None]


def repeat_cache(cache: Cache, group: int) -> Cache:
    """Each prompt's keys and values for every completion of its group, [lanes, batch * group, ...]."""
    return [(k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)) for k, v in cache]


def train_padding_row(model: nn.Module) -> None:
    """Lets the padding token's embedding have a gradient like any other's.

    An embedding with a padding index gives that row no gradient, under vmap in lane 0 only. Prompts hold no padding
    here, so a row that is read is a token like any other, in every lane.
    """
    model.get_input_embeddings().padding_idx = None


def _forward(model, weights, tokens, layers, mask, past, keep, caching):
    kwargs = {"input_ids": tokens, "attention_mask": mask, "use_cache": caching, "logits_to_keep": keep}
    # Given outright: what transformers derives by itself depends on the batch, which vmap does not allow.
    kwargs["position_ids"] = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
    if caching:
        kwargs["past_key_values"] = DynamicCache(layers) if layers else DynamicCache()
    out = model(**kwargs) if weights is None else functional_call(model, weights, kwargs=kwargs)
    grown = [(layer.keys, layer.values) for layer in out.past_key_values.layers] if caching else []
    return out.logits, grown


def _causal_mask(length: int, past: int, *, like: Tensor) -> Float[Tensor, "1 1 length total"]:
    position = torch.arange(past, past + length, device=like.device)
    hidden = torch.arange(past + length, device=like.device)[None] > position[:, None]
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(hidden, torch.finfo(like.dtype).min)[None, None]
