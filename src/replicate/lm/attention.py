r"""Attention pathways: exact cross-position Jacobians, their rank (Prop. 3) and what attention weights say of them.

One head's output at position t is o_t = sum_j alpha_{tj} v_j with the weights of (22), and the sublayer's output a_t
is a linear map of the heads' outputs side by side. With respect to the sublayer's input x_j, per head,

    j < t:  do_t/dx_j = alpha_{tj} [ dv_j/dx_j + (v_j - o_t) (q_t^T dk_j/dx_j) / sqrt(d_head) ]
    j = t:  the same and  sum_i alpha_{ti} (v_i - o_t) (k_i^T dq_t/dx_t) / sqrt(d_head)

The first summand is the *value term*, the rest the *score term*, of rank one for j < t. Both carry the factor
alpha_{tj}.

Queries, keys and values depend on their own position alone, and so does everything a block does besides attention.
:func:`anatomy` gets those position-wise Jacobians from a few backward passes, and the formula puts all pairs of
positions together: exact, for any architecture, and at a fraction of the cost of differentiating every output.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replicate.checks import one_of
from replicate.models.hooks import blocks, first_of, frozen, hidden_states, require_eager
from replicate.models.jacobians import positionwise, rows
from replicate.models.precision import attention_operands, held_attention, precision_of

PARTS = ("full", "value", "score")


@dataclass(frozen=True)
class Anatomy:
    """One block on one sequence, taken apart.

    ``alpha`` [heads, length, length] are the weights (22), ``q``, ``k``, ``v`` [heads, length, head_dim] as they meet
    (rotated, key heads repeated), ``dq``, ``dk``, ``dv`` [heads, length, head_dim, hidden] their Jacobians with respect
    to the sublayer's input x at their own position, ``project`` [hidden, heads * head_dim] the output projection.
    ``below`` [length, hidden, hidden] is dx/dh of the block's input h; ``skip`` [length, hidden, hidden] the Jacobian
    of the block's output with respect to h at a fixed output of the attention sublayer, ``after`` [length, hidden,
    hidden] with respect to that output (None, all three, where only the attention sublayer was asked for).
    """

    alpha: Float[Tensor, "heads length length"]
    q: Float[Tensor, "heads length head_dim"]
    k: Float[Tensor, "heads length head_dim"]
    v: Float[Tensor, "heads length head_dim"]
    dq: Float[Tensor, "heads length head_dim hidden"]
    dk: Float[Tensor, "heads length head_dim hidden"]
    dv: Float[Tensor, "heads length head_dim hidden"]
    scaling: float
    project: Float[Tensor, "hidden width"]
    below: Float[Tensor, "length hidden hidden"] | None
    skip: Float[Tensor, "length hidden hidden"] | None
    after: Float[Tensor, "length hidden hidden"] | None


def anatomy(
    model: nn.Module,
    tokens: Int[Tensor, " length"],
    *,
    layers: Sequence[int] | None = None,
    sublayer: bool = False,
) -> Iterator[Anatomy]:
    """Blocks of ``model`` as they run on ``tokens``, taken apart one after another. Needs eager attention.

    ``layers`` (1 is the first; default: all) are those wanted; ``sublayer`` leaves out what a block does besides
    attention, which is most of the work.
    """
    require_eager(model, "attention weights and their derivatives")
    calls = _block_calls(model, tokens)
    return (_take_apart(model, k - 1, calls[k - 1], sublayer) for k in layers or range(1, len(calls) + 1))


def head_jacobians(
    block: Anatomy, *, part: str = "full"
) -> Float[Tensor, "heads length length head_dim hidden"]:
    """do_t/dx_j of every head, before the output projection, indexed [head, t, j, out, in]; zero for j > t."""
    one_of("part", part, PARTS)
    full = torch.zeros(*block.alpha.shape, *block.dv.shape[2:], dtype=block.v.dtype)
    if part != "score":
        full += block.alpha[..., None, None] * block.dv[:, None]
    if part != "value":
        away, slope, turn = _score_factors(block)
        full += away[..., :, None] * slope[..., None, :]
        at = torch.arange(full.shape[1])
        full[:, at, at] += turn
    return full


def layer_jacobians(block: Anatomy, *, part: str = "full") -> Float[Tensor, "length length hidden hidden"]:
    """da_t/dx_j of the attention sublayer, indexed [t, j, out, in], all pairs of positions; zero for j > t.

    ``part="value"`` holds the attention weights constant, ``"score"`` the values. Diagonal blocks are included, though
    Prop. 3 speaks of j < t. Same formula as :func:`head_jacobians`, the projection applied before pairs are formed.
    """
    one_of("part", part, PARTS)
    heads, length = block.alpha.shape[:2]
    project = block.project.unflatten(1, (heads, -1))
    full = torch.zeros(length, block.project.shape[0], length, block.dv.shape[3], dtype=block.v.dtype)
    if part != "score":
        full += torch.einsum("htj,hjoi->toji", block.alpha, torch.einsum("ohc,hjci->hjoi", project, block.dv))
    if part != "value":
        away, slope, turn = _score_factors(block)
        full += torch.einsum("htjo,htji->toji", torch.einsum("ohc,htjc->htjo", project, away), slope)
        at = torch.arange(length)
        full[at, :, at] += torch.einsum("ohc,htci->toi", project, turn)
    return full.permute(0, 2, 1, 3)


def model_jacobians(
    model: nn.Module, tokens: Int[Tensor, " length"], *, chunk: int = 4
) -> Float[Tensor, "length length hidden hidden"]:
    """dh_t^L/dh_j^0 through all blocks, indexed [t, j, out, in]; zero for j > t.

    The tangents of ``chunk`` positions j at a time are carried through the blocks in closed form, at the positions
    t >= j that can feel them.
    """
    carriers = [_carrier(block) for block in anatomy(model, tokens)]
    length, hidden = len(tokens), model.config.hidden_size
    total = torch.zeros(length, length, hidden, hidden, dtype=torch.float64)
    for first in range(0, length, chunk):
        size = min(chunk, length - first)
        tangents = torch.eye(size * hidden, dtype=total.dtype).unflatten(0, (size, hidden))
        for carry in carriers:
            tangents = carry(tangents, first)
        total[first:, first : first + size] = tangents.unflatten(2, (size, hidden)).transpose(1, 2)
    return total


def _carrier(block: Anatomy) -> Callable[[Tensor, int], Tensor]:
    """What a block makes of tangents dh_j [m, hidden, N] of the m positions from ``first`` on, the others being zero:
    those of its outputs [positions, hidden, N], at every position from ``first`` on."""
    heads, _, size = block.v.shape
    mean = block.alpha @ block.v
    turn = _query_term(block, block.v[:, None] - mean[:, :, None])
    # What a position does with its own tangent, for keys, values, its query and past attention, in one product.
    own = torch.stack([block.dk, block.dv, turn]).permute(2, 0, 1, 3, 4).flatten(1, 3)
    own = torch.cat([own @ block.below, block.skip], dim=1)  # [length, 3 heads head_dim + hidden, hidden]
    project = block.after @ block.project  # from the heads' outputs to the block's

    def carry(tangents: Tensor, first: int) -> Tensor:
        since, here = slice(first, None), slice(first, first + len(tangents))
        alpha = block.alpha[:, since, here]
        mine, skip = (own[here] @ tangents).split([3 * heads * size, block.skip.shape[1]], dim=1)
        keys, values, turned = mine.unflatten(1, (3, heads, size)).permute(1, 2, 0, 3, 4)
        out = torch.einsum("htj,hjcn->htcn", alpha, values)
        out[:, : len(tangents)] += turned
        # score term: sum_j alpha_tj (v_j - o_t) q_t^T dk_j / sqrt(d_head)
        pull = torch.einsum("htc,hjcn->htjn", block.q[:, since], keys)
        pull *= (block.scaling * alpha)[..., None]
        out += torch.einsum("htjn,hjc->htcn", pull, block.v[:, here])
        out -= mean[:, since, :, None] * pull.sum(2)[:, :, None]
        carried = project[since] @ out.transpose(0, 1).flatten(1, 2)
        carried[: len(tangents)] += skip
        return carried

    return carry


def _score_factors(block: Anatomy) -> tuple[Tensor, Tensor, Tensor]:
    """The score term taken apart: for j < t the outer product of v_j - o_t [heads, t, j, head_dim] and of
    alpha_tj q_t^T dk_j / sqrt(d_head) [heads, t, j, hidden]; what x_t adds through its query, [heads, t, head_dim,
    hidden]."""
    away = block.v[:, None] - (block.alpha @ block.v)[:, :, None]
    slope = torch.einsum("htc,hjci->htji", block.q, block.dk) * (block.scaling * block.alpha)[..., None]
    return away, slope, _query_term(block, away)


def _query_term(block: Anatomy, away: Tensor) -> Float[Tensor, "heads length head_dim hidden"]:
    """sum_i alpha_ti (v_i - o_t) (k_i^T dq_t/dx_t) / sqrt(d_head); ``away`` [heads, t, i, head_dim] is v_i - o_t."""
    covariance = torch.einsum("htj,htjo,hjc->htoc", block.alpha, away, block.k)
    return block.scaling * covariance @ block.dq


def layer_jacobians_by_autograd(
    model: nn.Module, tokens: Int[Tensor, " length"], *, layer: int, part: str = "full"
) -> Float[Tensor, "length length hidden hidden"]:
    """:func:`layer_jacobians` of sublayer ``layer`` (1 is the first) by differentiating every output: the slow route.

    Raises ``ValueError`` for a layer out of range, an unknown part and fused attention.
    """
    one_of("part", part, PARTS)
    require_eager(model, "attention weights and their derivatives")
    depth = model.config.num_hidden_layers
    if not 1 <= layer <= depth:
        raise ValueError(f"layer: expected 1 to {depth} (this model has {depth} blocks), got {layer}")
    if part == "score":
        return layer_jacobians_by_autograd(model, tokens, layer=layer) - layer_jacobians_by_autograd(
            model, tokens, layer=layer, part="value"
        )
    module = attention_module(model, layer - 1)
    x, others, named = _block_calls(model, tokens, module=attention_module)[layer - 1]
    with frozen(model), torch.enable_grad(), precision_of(model):
        leaf = x.clone().requires_grad_()
        if part == "value":
            with held_attention():
                out = first_of(module(leaf, *others, **named))
        else:
            out = first_of(module(leaf, *others, **named))
        return _blocked(rows(out.flatten(1), leaf), leaf.shape[1])


def model_jacobians_by_autograd(
    model: nn.Module, tokens: Int[Tensor, " length"]
) -> Float[Tensor, "length length hidden hidden"]:
    """:func:`model_jacobians` by differentiating every output of the last block: the slow route."""
    require_eager(model, "Jacobians by batched backward passes")
    with frozen(model), torch.enable_grad(), precision_of(model):
        states, _ = hidden_states(model, tokens[None])
        return _blocked(rows(states[-2].flatten(1), states[0]), len(tokens))


def earlier(blocks_: Float[Tensor, "length length out in"]) -> Float[Tensor, "pairs out in"]:
    """The blocks with j < t, one after another."""
    t, j = torch.tril_indices(blocks_.shape[0], blocks_.shape[1], -1)
    return blocks_[t, j]


def _blocked(full: Float[Tensor, "1 outs length hidden"], length: int) -> Tensor:
    """[1, length * out, length, in] as [length (t), length (j), out, in]."""
    return full[0].unflatten(0, (length, -1)).transpose(1, 2)


def _block(model: nn.Module, layer: int) -> nn.Module:
    return blocks(model)[layer]


def attention_module(model: nn.Module, layer: int) -> nn.Module:
    """The attention of block ``layer``, counted from 0; ``ValueError`` unless there is exactly one."""
    found = [m for m in blocks(model)[layer].children() if type(m).__name__.endswith("Attention")]
    if len(found) != 1:
        raise ValueError(f"model: expected one attention module in block {layer + 1}, found {len(found)}")
    return found[0]


def _projection(module: nn.Module) -> nn.Module:
    names = ("o_proj", "c_proj", "out_proj", "dense")
    found = [getattr(module, name) for name in names if hasattr(module, name)]
    if len(found) != 1:
        raise ValueError(f"model: expected one output projection among {names}, found {len(found)}")
    return found[0]


def _block_calls(model: nn.Module, tokens: Tensor, *, module=_block) -> list[tuple[Tensor, tuple, dict]]:
    """What every block (or attention module) is called with: its input [1, length, hidden] and other arguments."""
    calls: list[tuple[Tensor, tuple, dict]] = []

    def note(_, args, kwargs):
        named = dict(kwargs)
        x = args[0] if args else named.pop("hidden_states")
        calls.append((x, args[1:], named))  # GPT-2 passes its mask by position

    hooks = [
        module(model, layer).register_forward_pre_hook(note, with_kwargs=True)
        for layer in range(len(blocks(model)))
    ]
    try:
        with torch.no_grad(), precision_of(model):
            model(input_ids=tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _take_apart(model: nn.Module, layer: int, call: tuple[Tensor, tuple, dict], sublayer: bool) -> Anatomy:
    module = attention_module(model, layer)
    h = call[0].detach().clone().requires_grad_()
    with frozen(model), torch.enable_grad(), precision_of(model):
        with _cut_at_projection(module) as seen, attention_operands() as operands:
            out = first_of(blocks(model)[layer](h, *call[1], **call[2]))
        if len(operands.products) != 2:
            raise ValueError(f"model: expected two products of eager attention, saw {len(operands.products)}")
        (q, k), (alpha, v) = operands.products
        k = k.transpose(2, 3)
        x, cut, mixed = seen["x"], seen["cut"], seen["mixed"]
        dq, dk, dv = (_positionwise_heads(part, x) for part in (q, k, v))
        return Anatomy(
            *(part.detach()[0] for part in (alpha, q, k, v)),
            dq=dq,
            dk=dk,
            dv=dv,
            scaling=float(module.scaling),
            project=positionwise(mixed, cut)[0],
            below=None if sublayer else positionwise(x, h),
            skip=None if sublayer else positionwise(out, h),
            after=None if sublayer else positionwise(out, mixed),
        )


def _positionwise_heads(part: Float[Tensor, "1 heads length head_dim"], x: Tensor) -> Tensor:
    flat = part.transpose(1, 2).flatten(2)
    return positionwise(flat, x).unflatten(1, (part.shape[1], -1)).transpose(0, 1)


@contextmanager
def _cut_at_projection(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Makes the heads' outputs a leaf, ``cut``, and notes the sublayer's input ``x`` and output ``mixed``."""
    seen: dict[str, Tensor] = {}

    def enter(_, args, kwargs):
        seen["x"] = args[0] if args else kwargs["hidden_states"]

    def cut(_, inputs):
        seen["cut"] = inputs[0].detach().requires_grad_()
        return (seen["cut"],)

    hooks = [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        _projection(module).register_forward_pre_hook(cut),
        module.register_forward_hook(lambda _, __, output: seen.update(mixed=first_of(output))),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
