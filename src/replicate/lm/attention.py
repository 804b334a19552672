r"""Attention pathways: exact cross-position Jacobians, their rank (Prop. 3) and what attention weights say of them.

One head's output at position t is o_t = sum_j alpha_{tj} v_j with the weights of (22), and the sublayer's output a_t is a
linear map of the heads' outputs side by side. For j < t the derivative with respect to the sublayer's input x_j is, per head,

    do_t/dx_j = alpha_{tj} [ dv_j/dx_j + (v_j - o_t) (q_t^T dk_j/dx_j) / sqrt(d_head) ]

The first summand is the *value term*, the second, of rank one, the *score term*. Both carry the factor alpha_{tj}.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.lm.jacobians import rows
from replicate.lm.modes import held_attention
from replicate.lm.wiring import blocks, first_of, frozen, hidden_states, precision_of, require_eager

Part = Literal["full", "value", "score"]


@dataclass(frozen=True)
class Sublayer:
    """One attention sublayer on one sequence: the module, the input x [1, length, hidden] it got, its other
    arguments, and the attention weights alpha [heads, length, length] it formed."""

    module: nn.Module
    x: Float[Tensor, "1 length hidden"]
    arguments: dict[str, Any]
    alpha: Float[Tensor, "heads length length"]


@dataclass(frozen=True)
class Shape:
    """What Prop. 3 counts: blocks, heads, key-value heads, their width and the model's width."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int

    @property
    def layer_bound(self) -> int:
        """Rank bound of one sublayer's cross-position Jacobian, min(d_model, heads x d_head)."""
        return min(self.hidden, self.heads * self.head_dim)

    @property
    def input_bound(self) -> int:
        """What the input side allows: x_j enters through the keys and values of the key-value heads only."""
        return min(self.layer_bound, 2 * self.kv_heads * self.head_dim)

    @property
    def total_bound(self) -> int:
        """Rank bound of the whole model's, min(d_model, layers x heads x d_head)."""
        return min(self.hidden, self.layers * self.heads * self.head_dim)


def shape_of(model: nn.Module) -> Shape:
    """Reads a model's shape from its configuration and its value projections."""
    config = model.config
    heads = config.num_attention_heads
    size = getattr(_attention(model, 0), "head_dim", config.hidden_size // heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Shape(config.num_hidden_layers, heads, kv_heads, size, config.hidden_size)


def sublayers(model: nn.Module, tokens: Int[Tensor, " length"]) -> list[Sublayer]:
    """Every attention sublayer as it runs on ``tokens``. Needs eager attention, which forms the weights."""
    require_eager(model, "attention weights and their derivatives")
    caught: list[tuple[nn.Module, Tensor, dict[str, Any], Tensor]] = []

    def note(module, args, kwargs, output):
        named = dict(kwargs)
        x = args[0] if args else named.pop("hidden_states")
        caught.append((module, x.detach(), named, output[1].detach()[0]))

    hooks = [
        _attention(model, layer).register_forward_hook(note, with_kwargs=True) for layer in range(len(blocks(model)))
    ]
    try:
        with torch.no_grad(), precision_of(model):
            model(input_ids=tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [Sublayer(*one) for one in caught]


def layer_jacobians(
    model: nn.Module, tokens: Int[Tensor, " length"], *, layer: int, part: Part = "full"
) -> Float[Tensor, "length length hidden hidden"]:
    """da_t/dx_j of attention sublayer ``layer`` (1 is the first), indexed [t, j, out, in], all pairs at once.

    ``part="value"`` holds the attention weights constant, ``"score"`` is the rest. Diagonal blocks are included, though
    Prop. 3 speaks of j < t. Raises ``ValueError`` for a layer out of range, an unknown part and fused attention.
    """
    depth = model.config.num_hidden_layers
    if not 1 <= layer <= depth:
        raise ValueError(f"layer: expected 1 to {depth} (this model has {depth} blocks), got {layer}")
    return _by_part(part, lambda p: _jacobians(model, sublayers(model, tokens)[layer - 1], p, per_head=False))


def head_jacobians(
    model: nn.Module, sublayer: Sublayer, *, part: Part = "full"
) -> Float[Tensor, "heads length length head_dim hidden"]:
    """do_t/dx_j of every head of a sublayer, before the output projection, indexed [head, t, j, out, in]."""
    full = _by_part(part, lambda p: _jacobians(model, sublayer, p, per_head=True))
    heads = len(sublayer.alpha)
    return full.unflatten(2, (heads, -1)).permute(2, 0, 1, 3, 4)


def model_jacobians(
    model: nn.Module, tokens: Int[Tensor, " length"]
) -> Float[Tensor, "length length hidden hidden"]:
    """dh_t^L/dh_j^0 through the whole model (blocks 1 to L), indexed [t, j, out, in]."""
    require_eager(model, "Jacobians by batched backward passes")
    with frozen(model), torch.enable_grad(), precision_of(model):
        states, _ = hidden_states(model, tokens[None])
        full = rows(states[-2].flatten(1), states[0])
    return _blocked(full, tokens.shape[0])


def earlier(blocks_: Float[Tensor, "length length out in"]) -> Float[Tensor, "pairs out in"]:
    """The blocks with j < t, one after another."""
    t, j = torch.tril_indices(blocks_.shape[0], blocks_.shape[1], -1)
    return blocks_[t, j]


def numerical_rank(matrices: Float[Tensor, "*batch out in"], *, rtol: float = 1e-10) -> Int[Tensor, "*batch"]:
    """Number of singular values above ``rtol`` times the largest; 0 for a matrix of zeros.

    The default stands between round-off in float64 (1e-15) and the smallest genuine singular values of a tiny model.
    """
    values = torch.linalg.svdvals(matrices)
    return ((values > rtol * values[..., :1]) & (values[..., :1] > 0)).sum(-1)


def participation_ratio(matrices: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """(sum s^2)^2 / sum s^4 over singular values s: how many directions carry the Jacobian; 0 for zeros."""
    power = torch.linalg.svdvals(matrices).square()
    return torch.nan_to_num(power.sum(-1).square() / power.square().sum(-1), nan=0.0)


def entropy_rank(matrices: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of s^2 / sum s^2 over singular values s; 0 for zeros."""
    power = torch.linalg.svdvals(matrices).square()
    total = power.sum(-1)
    spread = torch.special.entr(power / total.clamp_min(1e-300)[..., None]).sum(-1).exp()
    return torch.where(total > 0, spread, 0.0)


def breadth(alpha: Float[Tensor, "*batch context"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of attention weights over a context, after normalising them: a number of positions."""
    share = alpha / alpha.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def _by_part(part: str, compute) -> Tensor:
    if part not in ("full", "value", "score"):
        raise ValueError(f"part: expected one of ('full', 'value', 'score'), got {part!r}")
    return compute("full") - compute("value") if part == "score" else compute(part)


def _jacobians(model, sublayer: Sublayer, part: str, *, per_head: bool) -> Tensor:
    with frozen(model), torch.enable_grad(), precision_of(model), _projection_input(sublayer.module) as heads:
        leaf = sublayer.x.clone().requires_grad_()
        if part == "value":
            with held_attention():
                out = first_of(sublayer.module(leaf, **sublayer.arguments))
        else:
            out = first_of(sublayer.module(leaf, **sublayer.arguments))
        full = rows((heads[0] if per_head else out).flatten(1), leaf)
    return _blocked(full, leaf.shape[1])


def _blocked(full: Float[Tensor, "1 outs length hidden"], length: int) -> Tensor:
    """[1, length * out, length, in] as [length (t), length (j), out, in]."""
    return full[0].unflatten(0, (length, -1)).transpose(1, 2)


def _attention(model: nn.Module, layer: int) -> nn.Module:
    found = [m for m in blocks(model)[layer].children() if type(m).__name__.endswith("Attention")]
    if len(found) != 1:
        raise ValueError(f"model: expected one attention module in block {layer + 1}, found {len(found)}")
    return found[0]


@contextmanager
def _projection_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module's output projection is given: the heads' outputs side by side."""
    names = ("o_proj", "c_proj", "out_proj", "dense")
    found = [getattr(module, name) for name in names if hasattr(module, name)]
    if len(found) != 1:
        raise ValueError(f"model: expected one output projection among {names}, found {len(found)}")
    seen: list[Tensor] = []
    hook = found[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
